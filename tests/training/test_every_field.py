"""Every field of a run's config reaches the code: each one, changed, changes something that can be seen.

A field without an entry in the tables below fails the test. Fields that hold a part of the config need none: their
own fields have one.
"""

import dataclasses
import json
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynllava_jax.config import data, training
from dynllava_jax.config.data import DataConfig
from dynllava_jax.config.presets import tiny
from dynllava_jax.config.training import (
    CheckpointConfig,
    EvalConfig,
    GumbelConfig,
    InitConfig,
    LogConfig,
    LoraConfig,
    LossConfig,
    OptimizerConfig,
    TrainConfig,
)
from dynllava_jax.training.forward import ForwardPlan
from tests.training.observers import (
    adapters,
    base_config,
    cadence,
    change,
    checkpoint_of,
    data_of,
    explosion,
    folder_of,
    held_out,
    index,
    kept,
    loaded,
    made,
    mesh,
    parameters,
    plan,
    program,
    reading,
    subject,
    tau,
    trainer,
    update,
    warm_start,
    writers,
)

LORA = LoraConfig(rank=2)
Observe = Callable[[TrainConfig], Any]
Entry = tuple[Observe, Callable[[], tuple[TrainConfig, TrainConfig]]]
"""What to look at, and two configs that differ in the field; made late, since some need files."""


def entry(observe: Observe, part: str, before: Any = None, **after: Any) -> Entry:
    return observe, lambda: (change(part, **before or {}), change(part, **(before or {}) | after))


def top(observe: Observe, **after: Any) -> Entry:
    return observe, lambda: (base_config(), dataclasses.replace(base_config(), **after))


def on_data(observe: Observe, before: Callable[[], dict[str, Any]], after: Callable[[], dict[str, Any]]) -> Entry:
    return observe, lambda: (change("data", **before()), change("data", **before() | after()))


def _broken() -> dict[str, Any]:
    """A source with one sample in 12 that nothing can be learned from."""
    records = json.loads(Path(data_of("broken", 12)).read_text())
    records[1]["conversations"][1]["value"] = 7
    (folder_of() / "broken" / "data.json").write_text(json.dumps(records))
    return {"source": data_of("broken", 12), "require_image": False, "on_error": "skip", "max_skipped": 0.5}


def _two() -> dict[str, Any]:
    return {"source": (data_of("a"), data_of("b", 12))}


CHANGES: dict[type, dict[str, Entry]] = {
    InitConfig: {
        "checkpoint": (warm_start, lambda: (base_config(), change("init", checkpoint=checkpoint_of()))),
        "fresh": (
            warm_start,
            lambda: (
                change("init", checkpoint=checkpoint_of()),
                change("init", checkpoint=checkpoint_of(), fresh=("projector",)),
            ),
        ),
        "tokenizer": (
            subject,
            lambda: (
                change("init", checkpoint=checkpoint_of()),
                change("init", checkpoint=checkpoint_of(), tokenizer=None),
            ),
        ),
        "seed": entry(made, "init", seed=1),
    },
    LoraConfig: {
        name: entry(adapters, "optimizer", {"lora": LORA}, lora=lora)
        for name, lora in {
            "rank": LoraConfig(rank=4),
            "alpha": dataclasses.replace(LORA, alpha=8.0),
            "targets": dataclasses.replace(LORA, targets=("query", "up")),
        }.items()
    },
    OptimizerConfig: {
        **{
            name: entry(update, "optimizer", **{name: value})
            for name, value in {
                "learning_rate": 1e-3,
                "predictor_learning_rate": 1e-3,
                "weight_decay": 0.5,
                "predictor_weight_decay": 0.5,
                "beta1": 0.5,
                "beta2": 0.5,
                "eps": 1.0,
                "clip_norm": 0.1,
                "warmup_ratio": 0.5,
            }.items()
        },
        "freeze_vision": entry(parameters, "optimizer", freeze_vision=False),
        "freeze_projector": entry(parameters, "optimizer", freeze_projector=True),
        "freeze_decoder": entry(parameters, "optimizer", freeze_decoder=True),
        "freeze_predictors": entry(parameters, "optimizer", freeze_predictors=True),
        "lora": entry(parameters, "optimizer", lora=LORA),
    },
    LossConfig: {
        "mask_weight": entry(program, "loss", mask_weight=7.0),
        "min_answer_tokens": entry(program, "loss", min_answer_tokens=7),
        "min_instruction_tokens": (
            program,
            lambda: (change("loss", min_instruction_tokens=7), change("loss", min_instruction_tokens=8)),
        ),
        "eps": entry(program, "loss", eps=1e-3),
        "normalise": (
            trainer,
            lambda: (
                dataclasses.replace(base_config(), global_batch_size=4, device_batch_size=1),
                dataclasses.replace(
                    base_config(), global_batch_size=4, device_batch_size=1, loss=LossConfig(normalise="per_device")
                ),
            ),
        ),
        "chunk": entry(program, "loss", chunk=16),
        "zero_dropped": entry(program, "loss", zero_dropped=True),
    },
    GumbelConfig: {"start": entry(tau, "gumbel", start=2.0), "end": entry(tau, "gumbel", end=0.5)},
    CheckpointConfig: {
        "every": entry(cadence, "checkpoint", every=7),
        "keep": entry(kept, "checkpoint", keep=9),
        "keep_best": entry(kept, "checkpoint", keep_best=False),
    },
    EvalConfig: {
        "every": entry(cadence, "eval", every=7),
        "source": (
            plan,
            lambda: (change("eval", every=1, samples=4), change("eval", every=1, samples=4, source=data_of("b", 12))),
        ),
        "images": (
            held_out,
            lambda: (
                change("eval", every=1, samples=4, source=data_of("b", 12)),
                change("eval", every=1, samples=4, source=data_of("b", 12), images=str(folder_of())),
            ),
        ),
        "samples": entry(plan, "eval", {"every": 1, "samples": 4}, samples=5),
    },
    LogConfig: {
        "health_every": entry(cadence, "log", health_every=7),
        "tensorboard": entry(writers, "log", tensorboard=False),
        "wandb_project": entry(writers, "log", wandb_project="mine"),
        "explosion": entry(explosion, "log", explosion=5.0),
    },
    TrainConfig: {
        "model": top(subject, model="demo"),
        "sparsity": top(subject, sparsity=tiny().sparsity.dense()),
        "template": top(subject, template="plain"),
        "image_aspect": top(subject, image_aspect="crop"),
        "mesh": top(mesh, mesh="data=2,tensor=4"),
        "global_batch_size": top(plan, global_batch_size=4),
        "device_batch_size": top(trainer, device_batch_size=2),
        "epochs": top(plan, epochs=2.0),
        "steps": top(plan, steps=9),
        "dtype": top(trainer, dtype="float32"),
        "remat": top(program, remat="none"),
        "attention": top(lambda config: ForwardPlan(attention=config.attention), attention="xla"),
        "seed": top(trainer, seed=1),
    },
    DataConfig: {
        "source": on_data(plan, dict, lambda: {"source": data_of("b", 12)}),
        "images": on_data(loaded, dict, lambda: {"images": str(folder_of())}),
        "weights": on_data(plan, _two, lambda: {"weights": (2.0, 0.5)}),
        "adapter": on_data(plan, lambda: {"source": "tfds:none"}, lambda: {"adapter": "no.such:adapter"}),
        "index": on_data(index, dict, lambda: {"index": str(folder_of() / "elsewhere")}),
        "require_image": on_data(plan, dict, lambda: {"require_image": False}),
        "truncate": on_data(plan, lambda: {"max_length": 120}, lambda: {"truncate": False}),
        "max_length": on_data(plan, dict, lambda: {"max_length": 120}),
        "lengths": on_data(plan, dict, lambda: {"lengths": (200, 256)}),
        "max_shapes": on_data(plan, lambda: {"lengths": (112, 128, 144, 192)}, lambda: {"max_shapes": 1}),
        "window": on_data(plan, dict, lambda: {"window": 1}),
        "on_error": on_data(plan, _broken, lambda: {"on_error": "fail"}),
        "max_skipped": on_data(plan, _broken, lambda: {"max_skipped": 0.01}),
        "workers": on_data(reading, dict, lambda: {"workers": 3}),
        "prefetch": on_data(reading, dict, lambda: {"prefetch": 5}),
        "seed": on_data(plan, dict, lambda: {"seed": 1}),
    },
}


def configs() -> set[type]:
    return {
        item
        for module in (training, data)
        for item in vars(module).values()
        if isinstance(item, type) and dataclasses.is_dataclass(item) and item.__module__ == module.__name__
    }


def test_the_table_is_complete() -> None:
    assert set(CHANGES) == configs()
    for config, entries in CHANGES.items():
        hints = typing.get_type_hints(config)
        parts = {field.name for field in dataclasses.fields(config) if hints[field.name] in CHANGES}
        assert set(entries) | parts == {field.name for field in dataclasses.fields(config)}, config


CASES = [(f"{config.__name__}.{name}", case) for config, fields in CHANGES.items() for name, case in fields.items()]


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for _, case in CASES], ids=[name for name, _ in CASES])
def test_the_field_changes_something(case: Entry) -> None:
    observe, make = case
    before, after = make()
    assert before != after
    assert observe(before) != observe(after)
