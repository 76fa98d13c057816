"""Damaged folders: the short form of tools/soak_mutations.py, and the dangers that have a name."""

from pathlib import Path

import numpy as np

from dynllava_jax.checkpoint.inspect import inspect
from dynllava_jax.convert.from_torch import convert
from tests.convert import mutations, torch_folders
from tests.convert.torch_folders import Tensors


def test_mutated_folders_are_refused_in_one_line_or_converted(tmp_path: Path) -> None:
    lines: list[str] = []
    refused = mutations.run(tmp_path, 40, seed=0, told=lambda what, line: lines.append(line))
    assert 20 <= refused <= len(lines) == 40
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good"]


def test_nan_weights_are_reported(tmp_path: Path) -> None:
    def poison(tensors: Tensors) -> None:
        tensors["model.norm.weight"][3] = np.nan
        tensors["lm_head.weight"][0, :2] = np.inf

    torch_folders.golden("vision_tower", tmp_path)
    src = torch_folders.golden("checkpoint", tmp_path)
    torch_folders.change_tensors(src, poison)
    report = convert(src, tmp_path / "dst")
    assert any("NaN or infinite values in 2 tensors: lm_head.weight" in note for note in report.notes)
    assert sum(row.not_finite for row in inspect(tmp_path / "dst").rows) == 3
