"""The tower's pretraining: it goes on where it stopped, and becomes a checkpoint to train from."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from dynllava_jax.checkpoint.load import load_parameters
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.presets import demo
from dynllava_jax.demo import tower
from dynllava_jax.demo.initial import write_initial
from dynllava_jax.demo.patches import Batch
from dynllava_jax.demo.tower import TowerTraining, learned, train

TRAINING = TowerTraining(steps=3, whole_steps=1, batch_size=4, save_every=1)


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    small = demo()
    return dataclasses.replace(
        small,
        vision=dataclasses.replace(small.vision, hidden_size=32, intermediate_size=32, num_layers=2, patch_size=28),
    )


class StoppedError(Exception): ...


def test_a_stopped_run_ends_as_an_undisturbed_one(
    config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(step: int, metrics: dict[str, float]) -> None: ...

    drawn = tower._batch

    def stop_at_two(config: ModelConfig, training: TowerTraining, step: int) -> Batch:
        if step == 2:
            raise StoppedError
        return drawn(config, training, step)

    undisturbed = train(config, TRAINING, tmp_path / "undisturbed", nothing)
    with monkeypatch.context() as patched:
        patched.setattr(tower, "_batch", stop_at_two)
        with pytest.raises(StoppedError):
            train(config, TRAINING, tmp_path / "stopped", nothing)
    resumed = train(config, TRAINING, tmp_path / "stopped", nothing)
    assert resumed.step == undisturbed.step == 3
    values = learned(config, TRAINING, resumed)
    for path, value in learned(config, TRAINING, undisturbed).items():
        assert np.array_equal(value, values[path])
    assert {path.split("/")[0] for path in values} == {"vision", "projector", "decoder"}
    write_initial(tmp_path / "model", config, values)
    loaded = load_parameters(tmp_path / "model", config)
    assert {path: value for path, value in values.items() if not np.array_equal(loaded[path], value)} == {}
    attends_to_its_like(config, loaded)


def attends_to_its_like(config: ModelConfig, values: dict[str, jax.Array]) -> None:
    """A key's own vector fits each query head of its group best, and values come out as they went in."""
    decoder = config.decoder
    x = np.random.default_rng(0).normal(size=(20, decoder.hidden_size))
    heads = (len(x), -1, decoder.head_dim)
    layer = {name: np.asarray(values[f"decoder/deep/attention/{name}/kernel"][0]) for name in ("query", "key", "value")}
    query, key, value = ((x @ layer[name]).reshape(heads) for name in layer)
    group = decoder.num_heads // decoder.num_kv_heads
    scores = np.einsum("shd,thd->hst", query, key.repeat(group, axis=1))
    assert (np.argmax(scores, -1) == np.arange(20)).mean() > 0.95
    out = value.repeat(group, axis=1).reshape(len(x), -1) @ np.asarray(values["decoder/deep/attention/out/kernel"][0])
    assert (np.argmax(out @ x.T, -1) == np.arange(20)).mean() > 0.95
