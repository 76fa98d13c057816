"""Damaged folders: the short form of tools/soak_mutations.py, and the dangers that have a name."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dynllava_jax.checkpoint.inspect import inspect
from dynllava_jax.convert.from_torch import convert
from tests.convert import torch_folders
from tests.convert.torch_folders import Tensors


@pytest.mark.slow
def test_mutated_folders_are_refused_in_one_line_or_converted() -> None:
    """In a process of its own: the shape checker would refuse a wrong type in a config before the package does."""
    tool = Path(__file__).parents[2] / "tools" / "soak_mutations.py"
    done = subprocess.run(
        [sys.executable, str(tool), "--count", "40"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tool.parents[1])},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "40 mutations of seed 0:" in done.stdout


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
