"""The tower's pretraining: it goes on where it stopped, and becomes a checkpoint to train from."""

import dataclasses
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from dynllava_jax.checkpoint.load import load_parameters
from dynllava_jax.cli.main import main
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.presets import demo
from dynllava_jax.demo import initial, tower
from dynllava_jax.demo.initial import write_initial
from dynllava_jax.demo.patches import Batch
from dynllava_jax.demo.tower import TowerState, TowerTraining, learned, train
from dynllava_jax.errors import InputError

TRAINING = TowerTraining(steps=3, whole_steps=1, batch_size=4, save_every=1)


@pytest.fixture(scope="module")
def config() -> ModelConfig:
    small = demo()
    return dataclasses.replace(
        small,
        vision=dataclasses.replace(small.vision, hidden_size=32, intermediate_size=32, num_layers=2, patch_size=28),
    )


class StoppedError(Exception): ...


@pytest.mark.slow
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
    turned = {"decoder/embedding", "projector/layers/1/kernel", "projector/layers/1/bias"}
    assert {path for path, value in values.items() if not np.array_equal(loaded[path], value)} == turned
    attends_to_its_like(config, loaded)


def test_more_steps_go_on_where_the_checkpoint_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    trained: list[int] = []

    def save(steps: int) -> TowerState:
        state = TowerState({"x": np.zeros(1)}, (), steps)
        tower._save(tmp_path, state)
        return state

    def short(config: ModelConfig, training: TowerTraining, folder: Path, report: object) -> TowerState:
        trained.append(training.steps)
        return save(training.steps)

    monkeypatch.setattr(tower, "train", short)
    monkeypatch.setattr(tower, "learned", lambda config, training, state: {})
    monkeypatch.setattr(initial, "write_initial", lambda dst, config, values: dst.mkdir())
    for steps in (3, 3, 5, 3):
        assert main(["demo", "tower", str(tmp_path), "--steps", str(steps)]) == 0
    assert trained == [3, 5]
    assert "is there already, after 5 steps" in capsys.readouterr().out

    # Stopped once more steps were saved, before the checkpoint of the fewer ones was replaced.
    save(7)
    os.utime(tmp_path / "model", ns=(0, 0))
    assert main(["demo", "tower", str(tmp_path), "--steps", "7"]) == 0
    assert trained == [3, 5, 7]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "--steps must be 1 or more"),
        (["--whole-steps", "-1"], "--whole-steps must be 0 or more"),
        (["--steps", "9"], "tower.npz is damaged"),
    ],
)
def test_bad_input_is_one_line(
    tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tower.npz").write_bytes(b"PK")
    assert main(["demo", "tower", str(tmp_path), *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_a_state_of_another_model_or_with_a_flipped_bit_is_refused(tmp_path: Path) -> None:
    state = TowerState({"x": np.zeros(3)}, (), 3)
    tower._save(tmp_path, state)
    assert tower._restore(tmp_path, state).step == 3
    with pytest.raises(InputError, match=r"tower.npz is damaged: it holds another model; remove it"):
        tower._restore(tmp_path, state._replace(params={"x": np.zeros(4)}))
    content = bytearray((tmp_path / "tower.npz").read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1  # it says that it is encrypted
    (tmp_path / "tower.npz").write_bytes(content)
    with pytest.raises(InputError, match=r"tower.npz is damaged: .*encrypted.*; remove it"):
        tower._restore(tmp_path, state)


def test_a_state_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "tower.tmp.npz").mkdir()
    with pytest.raises(
        InputError, match=r"tower.npz could not be written: Is a directory; see to it that there is room"
    ):
        tower._save(tmp_path, TowerState({"x": np.zeros(1)}, (), 3))


def test_a_folder_that_cannot_be_made_is_found_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tower, "train", lambda *given: pytest.fail("it trained"))
    (tmp_path / "file").touch()
    assert main(["demo", "tower", str(tmp_path / "file" / "run")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def attends_to_its_like(config: ModelConfig, values: dict[str, jax.Array]) -> None:
    """A key's own vector fits each query head of its group best, and values come out as they went in."""
    decoder = config.decoder
    x = np.random.default_rng(0).normal(size=(20, decoder.hidden_size))
    heads = (len(x), -1, decoder.head_dim)
    layer = {
        name: np.asarray(values[f"decoder/deep/attention/{name}/kernel"][-1]) for name in ("query", "key", "value")
    }
    query, key, value = ((x @ layer[name]).reshape(heads) for name in layer)
    group = decoder.num_heads // decoder.num_kv_heads
    scores = np.einsum("shd,thd->hst", query, key.repeat(group, axis=1))
    assert (np.argmax(scores, -1) == np.arange(20)).mean() > 0.95
    out = value.repeat(group, axis=1).reshape(len(x), -1) @ np.asarray(values["decoder/deep/attention/out/kernel"][-1])
    assert (np.argmax(out @ x.T, -1) == np.arange(20)).mean() > 0.95
