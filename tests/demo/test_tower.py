"""The tower's pretraining: it goes on where it stopped, and becomes a checkpoint to train from."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dynllava_jax.checkpoint.load import load_parameters
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.presets import demo
from dynllava_jax.demo import tower
from dynllava_jax.demo.catalogue import OBJECTS
from dynllava_jax.demo.initial import write_initial
from dynllava_jax.demo.render import render
from dynllava_jax.demo.scenes import draw
from dynllava_jax.demo.tower import HEADS, Batch, TowerTraining, batch, tower_of, train

TRAINING = TowerTraining(steps=3, whole_steps=1, batch_size=4, save_every=1)


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    small = demo()
    return dataclasses.replace(
        small,
        vision=dataclasses.replace(small.vision, hidden_size=32, intermediate_size=32, num_layers=2, patch_size=28),
    )


def test_a_batch_shows_the_pictures_that_its_labels_describe(config: ModelConfig) -> None:
    cut, whole = batch(5, config, TRAINING, False), batch(5, config, TRAINING, True)
    assert cut.pixels.shape == (4, 112, 112, 3)
    assert whole.pixels.shape == (1, 336, 336, 3)
    assert {name: value.shape for name, value in whole.labels.items()} == dict.fromkeys(HEADS, (1, 144))
    again = batch(5, config, TRAINING, False)
    assert np.array_equal(cut.pixels, again.pixels)
    # Whole pictures: the corner is the first one, and the first accepted scene of the step's generator is seen.
    rng = np.random.default_rng((TRAINING.seed, 5))
    rng.integers(0, 1, 2)
    while len((scene := draw(rng, "train")).placements) < 3:
        pass
    prep = config.image_prep
    pixels = whole.pixels[0] * np.array(prep.std, np.float32) + np.array(prep.mean, np.float32)
    assert np.allclose(pixels * 255, np.asarray(render(scene)[0]), atol=0.01)
    labels = {name: value[0] for name, value in whole.labels.items()}
    assert set(labels["thing"]) - {0} <= {1 + OBJECTS.index(one.thing) for one in scene.placements}
    assert ((labels["thing"] > 0) == (labels["size"] >= 0)).all()
    assert ((labels["thing"] == 0) == (labels["background"] >= 0)).all()


class StoppedError(Exception): ...


def test_a_stopped_run_ends_as_an_undisturbed_one(
    config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(step: int, metrics: dict[str, float]) -> None: ...

    def stop_at_two(step: int, *rest: object) -> Batch:
        if step == 2:
            raise StoppedError
        return batch(step, *rest)  # pyright: ignore[reportArgumentType]

    training = dataclasses.replace(TRAINING, whole_steps=0)
    undisturbed = train(config, training, tmp_path / "undisturbed", nothing)
    with monkeypatch.context() as patched:
        patched.setattr(tower, "batch", stop_at_two)
        with pytest.raises(StoppedError):
            train(config, training, tmp_path / "stopped", nothing)
    resumed = train(config, training, tmp_path / "stopped", nothing)
    assert resumed.step == undisturbed.step == 3
    weights = tower_of(resumed)
    for path, value in tower_of(undisturbed).items():
        assert np.array_equal(value, weights[path])
    write_initial(tmp_path / "model", config, weights)
    values = load_parameters(tmp_path / "model", config)
    assert {path: value for path, value in weights.items() if not np.array_equal(values[path], value)} == {}
