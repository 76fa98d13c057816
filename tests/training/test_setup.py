"""What is trained follows from preset, checkpoint and config; what does not fit together is refused by name."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from dynllava_jax.config.data import DataConfig
from dynllava_jax.config.presets import tiny
from dynllava_jax.config.training import InitConfig, LogConfig, LossConfig, OptimizerConfig, TrainConfig
from dynllava_jax.errors import InputError
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.testing.tokenizer import write_tokenizer
from dynllava_jax.training.identity import check_same_run, identity
from dynllava_jax.training.setup import settle
from dynllava_jax.training.step import Trainer

DATA = DataConfig(max_length=128)


def run(checkpoint: Path | None, **options: Any) -> TrainConfig:
    init = InitConfig(None if checkpoint is None else str(checkpoint))
    return TrainConfig(**({"model": "tiny", "init": init, "data": DATA} | options))


def test_the_model_is_the_checkpoints_with_what_the_config_says(checkpoint: Path) -> None:
    sparsity = dataclasses.replace(tiny().sparsity, image_keep_rate=0.7)
    subject = settle(run(checkpoint, sparsity=sparsity, template="plain", image_aspect="crop"))
    expected = dataclasses.replace(
        tiny(),
        sparsity=sparsity,
        text_prep=dataclasses.replace(tiny().text_prep, template="plain", max_length=128),
        image_prep=dataclasses.replace(tiny().image_prep, aspect="crop"),
    )
    assert subject.model == expected
    assert subject.template.name == "plain"
    assert subject.files == checkpoint / "files"
    assert settle(run(checkpoint, model=None)).model.decoder == tiny().decoder


def test_a_preset_decides_what_is_dropped(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense = dataclasses.replace(tiny(), sparsity=tiny().sparsity.dense())
    monkeypatch.setattr("dynllava_jax.training.setup.get_preset", lambda name: dense)
    assert settle(run(checkpoint)).model.sparsity == dense.sparsity
    assert settle(run(checkpoint, model=None)).model.sparsity == tiny().sparsity


def test_a_preset_with_other_shapes_lists_every_field(checkpoint: Path) -> None:
    with pytest.raises(InputError) as caught:
        settle(run(checkpoint, model="demo"))
    for words in ("is no demo", "decoder.hidden_size 64, the preset 192", "vision.num_layers 3, the preset 5"):
        assert words in str(caught.value)
    assert "head_dim 16, the preset 48" in str(caught.value)


def test_random_weights_need_a_tokenizer(tokenizer_folder: Path, tmp_path: Path) -> None:
    assert settle(run(None, init=InitConfig(tokenizer=str(tokenizer_folder)))).tokenizer.vocab_size == 512
    with pytest.raises(InputError, match=r"needs init\.tokenizer"):
        settle(run(None))
    write_tokenizer(tmp_path, vocab_size=600)
    with pytest.raises(InputError, match="ids up to 599, the decoder an embedding of 512"):
        settle(run(None, init=InitConfig(tokenizer=str(tmp_path))))


def test_samples_must_fit_the_context(checkpoint: Path) -> None:
    with pytest.raises(InputError, match=r"data\.max_length 1024 exceeds the decoder's context of 512"):
        settle(run(checkpoint, data=DataConfig(max_length=1024)))


BASE = TrainConfig()


def compare(after: TrainConfig, data: str = "a", steps: int = 9, groups: int = 1, *, force: bool = False) -> list[str]:
    saved = json.loads(json.dumps(identity(BASE, "a", 9, 1)))
    return check_same_run("work", saved, identity(after, data, steps, groups), force=force)


def test_a_run_goes_on_wherever_it_computes() -> None:
    moved = dataclasses.replace(
        BASE,
        mesh="data=-1",
        device_batch_size=2,
        remat="none",
        log=LogConfig(tensorboard=False),
        init=InitConfig("elsewhere"),
        data=DataConfig(source="elsewhere.json", images="moved", workers=9),
    )
    assert compare(moved) == []


@pytest.mark.parametrize(
    ("change", "data", "steps", "words"),
    [
        ({"seed": 3}, "a", 9, "seed was 0 and is 3"),
        (
            {"optimizer": OptimizerConfig(learning_rate=1e-5)},
            "a",
            9,
            "optimizer.learning_rate was 5e-06 and is 1e-05",
        ),
        ({"data": DataConfig(max_length=1024)}, "a", 9, "data.max_length was 2048 and is 1024"),
        ({}, "b", 9, "the data, or the order of the samples, are others"),
        ({}, "a", 10, "the run had 9 steps and has 10"),
    ],
)
def test_another_run_is_refused_unless_forced(change: dict[str, Any], data: str, steps: int, words: str) -> None:
    after = dataclasses.replace(BASE, **change)
    with pytest.raises(InputError) as caught:
        compare(after, data, steps)
    assert words in str(caught.value)
    assert "--resume=force" in str(caught.value)
    assert compare(after, data, steps, force=True) == [words]


def test_a_mean_of_means_is_another_with_other_devices() -> None:
    loss = LossConfig(normalise="per_device")
    spread = TrainConfig(global_batch_size=8, mesh="data=2", device_batch_size=2, loss=loss)
    for config, groups in ((spread, 4), (dataclasses.replace(spread, loss=LossConfig()), 1)):
        assert Trainer(tiny(), config, make_mesh("data=2"), 10).loss_groups == groups
    words = "the loss was the mean of 1 means (loss.normalise) and is that of 4"
    assert compare(BASE, groups=4, force=True) == [words]
    old = identity(BASE, "a", 9, 1)
    del old["loss_groups"]
    assert check_same_run("work", old, identity(BASE, "a", 9, 4), force=False) == []
