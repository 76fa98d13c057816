"""What a step of the tower's pretraining sees: its labels describe its pictures."""

import dataclasses

import numpy as np
import pytest

from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.presets import demo
from dynllava_jax.demo.catalogue import OBJECTS
from dynllava_jax.demo.patches import batch, heads
from dynllava_jax.demo.render import render
from dynllava_jax.demo.scenes import draw


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    small = demo()
    return dataclasses.replace(small, vision=dataclasses.replace(small.vision, patch_size=28))


def test_whole_pictures_are_the_scenes_of_their_step(config: ModelConfig) -> None:
    whole = batch(config, 0, 5, 1, whole=True)
    assert whole.pixels.shape == (1, 336, 336, 3)
    assert {name: value.shape for name, value in whole.labels.items()} == dict.fromkeys(heads(config), (1, 144))
    rng = np.random.default_rng((0, 5))
    rng.integers(0, 1, (1, 2))
    while len((scene := draw(rng, "train")).placements) < 3:
        pass
    prep = config.image_prep
    pixels = whole.pixels[0] * np.array(prep.std, np.float32) + np.array(prep.mean, np.float32)
    assert np.allclose(pixels * 255, np.asarray(render(scene)[0]), atol=0.01)
    labels = {name: value[0] for name, value in whole.labels.items()}
    assert set(labels["thing"]) - {0} <= {1 + OBJECTS.index(one.thing) for one in scene.placements}
    assert ((labels["thing"] > 0) == (labels["size"] >= 0)).all()
    assert ((labels["thing"] == 0) == (labels["background"] >= 0)).all()
    assert np.array_equal(labels["y"] * 12 + labels["x"], np.arange(144))


def test_windows_know_where_they_lie_and_come_again(config: ModelConfig) -> None:
    cut, again = (batch(config, 0, 5, 4, whole=False) for _ in range(2))
    assert cut.pixels.shape == (4, 112, 112, 3)
    assert np.array_equal(cut.pixels, again.pixels)
    assert len({tuple(corner) for corner in cut.corners}) > 1
    for sample, (top, left) in enumerate(cut.corners):
        y, x = (cut.labels[name][sample].reshape(4, 4) for name in ("y", "x"))
        assert np.array_equal(y[:, 0], top + np.arange(4))
        assert np.array_equal(x[0], left + np.arange(4))
