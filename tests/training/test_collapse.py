"""Each collapse of the predictors, forced in a real run: it is told on the terminal, with what to try."""

from pathlib import Path

import numpy as np
import pytest

from dynllava_jax.checkpoint import store
from dynllava_jax.checkpoint.leaves import item_of, leaf_shapes
from dynllava_jax.config.presets import tiny
from tests.training.runs import records, run

pytestmark = pytest.mark.slow


def write_collapsed(folder: Path, tokenizer_folder: Path, margins: dict[str, float]) -> Path:
    """The tiny model with predictors that decide alike about every token."""
    draw = np.random.default_rng(0)
    leaves = []
    for name, shape in sorted(leaf_shapes(tiny()).items(), key=lambda leaf: item_of(leaf[0])):
        value = 0.1 * draw.standard_normal(shape).astype(np.float32)
        part = name.partition("/")[0]
        if part in margins and shape[-1] == 2:  # the last layer, or its bias
            value = np.zeros(shape, np.float32) if len(shape) > 1 else np.array([margins[part], 0.0], np.float32)
        leaves.append((name, value))
    files = {file.name: file.read_bytes() for file in tokenizer_folder.iterdir()}
    store.write(folder, tiny(), iter(leaves), extras=store.Extras(files=files))
    return folder


@pytest.mark.parametrize("image", ["everything", "nothing"])
def test_a_collapse_is_told(
    image: str, data: Path, tokenizer_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keeps = {"image": image == "everything", "output": image == "nothing"}
    margins = {f"{place}_predictor": 15.0 if all_kept else -15.0 for place, all_kept in keeps.items()}
    collapsed = write_collapsed(tmp_path / "model", tokenizer_folder, margins)
    more = ("--config.steps=2", "--config.log.health_every=1")
    assert run(data, tmp_path / "run", *more, checkpoint=collapsed) == 0
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dynllava: warning: The ")]
    for place, all_kept in keeps.items():
        does = "keeps everything (100%" if all_kept else "drops everything (0%"
        (line,) = (line for line in told if f"The {place} predictor {does}" in line)  # once, though it lasts
        assert "try a " in line
    (line,) = (line for line in told if "keeps the same positions of every image (overlap 1.00" in line)
    assert "gumbel.start" in line
    assert records(tmp_path / "run")[0]["health/image_overlap"] == 1.0
