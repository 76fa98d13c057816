"""Every field of a run's config reaches the code: each one, changed, changes something that can be seen.

A field without an entry in the tables below fails the test. Fields that hold a part of the config need none: their
own fields have one.
"""

import dataclasses
import functools
import json
import tempfile
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

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
from dynllava_jax.data import loader
from dynllava_jax.data.batch import Batch
from dynllava_jax.errors import InputError
from dynllava_jax.nn.flat import flatten
from dynllava_jax.nn.linear import Linear, adapter
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.testing import tiny_model
from dynllava_jax.testing.tokenizer import write_tokenizer
from dynllava_jax.training import initial, loop
from dynllava_jax.training.checkpoint import TrainingCheckpoints
from dynllava_jax.training.decisions import GumbelRule, draw_noise
from dynllava_jax.training.feed import Feed
from dynllava_jax.training.forward import ForwardPlan
from dynllava_jax.training.loss import compute_loss, shares
from dynllava_jax.training.metrics import _makers
from dynllava_jax.training.optimizer import Optimizer, start
from dynllava_jax.training.record import Recorder
from dynllava_jax.training.samples import training_samples
from dynllava_jax.training.schedule import temperature
from dynllava_jax.training.setup import settle
from dynllava_jax.training.state import Parameters, abstract_state
from dynllava_jax.training.step import Trainer
from tests.training.runs import write_data

Observe = Callable[[TrainConfig], Any]
ONE = make_mesh("data=1", jax.devices()[:1])


@functools.cache
def _folder() -> Path:
    return Path(tempfile.mkdtemp())


@functools.cache
def _data(name: str, count: int = 24) -> str:
    return str(write_data(_folder() / name, count, seed=count))


@functools.cache
def _tokenizer() -> str:
    folder = _folder() / "tokenizer"
    folder.mkdir()
    write_tokenizer(folder)
    return str(folder)


@functools.cache
def _checkpoint() -> str:
    from dynllava_jax.checkpoint import store
    from dynllava_jax.checkpoint.leaves import item_of, leaf_shapes

    shapes = sorted(leaf_shapes(tiny()).items(), key=lambda leaf: item_of(leaf[0]))
    files = {file.name: file.read_bytes() for file in Path(_tokenizer()).iterdir()}
    leaves = ((name, jnp.ones(shape)) for name, shape in shapes)
    store.write(_folder() / "model", tiny(), leaves, extras=store.Extras(files=files))  # pyright: ignore
    return str(_folder() / "model")


def _base(**options: Any) -> TrainConfig:
    given = DataConfig(_data("a"), index=str(_folder() / "index"), max_length=256, workers=0)
    init = InitConfig(tokenizer=_tokenizer())
    return TrainConfig(**({"model": "tiny", "init": init, "data": given, "global_batch_size": 8} | options))


def change(part: str, **values: Any) -> TrainConfig:
    base = _base()
    return dataclasses.replace(base, **{part: dataclasses.replace(getattr(base, part), **values)})


# What can be seen.


def subject(config: TrainConfig) -> Any:
    settled = settle(config)
    return settled.model, settled.template.name, settled.files


@functools.cache
def plan(config: TrainConfig) -> Any:
    """The run's batches, and what is held out; an error counts as something seen."""
    try:
        samples, held_out = training_samples(config, settle(config))
    except InputError as error:
        return str(error)
    steps = [samples.plan[step] for step in range(len(samples.plan))]
    batches = [(samples.ids(step), planned.length, planned.images) for step, planned in enumerate(steps)]
    return batches, None if held_out is None else sorted(held_out.dataset.index_of.tolist())


def loaded(config: TrainConfig) -> Any:
    samples, _ = training_samples(config, settle(config))
    try:
        return len(samples.dataset.load(0).pixels)
    except InputError as error:
        return str(error)


def held_out(config: TrainConfig) -> Any:
    _, samples = training_samples(config, settle(config))
    assert samples is not None
    try:
        return len(samples.dataset.load(0).pixels)
    except InputError as error:
        return str(error)


def index(config: TrainConfig) -> Any:
    plan(config)
    assert config.data.index is not None
    return sorted(path.parent for path in Path(config.data.index).glob("*"))


def reading(config: TrainConfig) -> Any:
    """Processes that read, and batches that wait."""
    samples, _ = training_samples(config, settle(config))
    asked = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader, "_batches", lambda *args: asked.append(args[-1]) or iter(()))
        with Feed(samples.dataset, samples.plan, ONE, config.data) as feed:
            return asked, feed._room._value


@functools.cache
def parameters(config: TrainConfig) -> Any:
    found = Parameters.of(tiny(), config.optimizer, ONE)
    shapes = flatten(found.abstract)
    return {path: shapes[path].shape for path in found.trained}, found.frozen


def update(config: TrainConfig) -> Any:
    """One step of a predictor's weight and of another one."""
    axes = {"image_predictor/score/kernel": ("embed", None), "decoder/head/kernel": ("embed", "vocab")}
    params = {path: jnp.ones((2, 2)) for path in axes}
    gradients = {path: jnp.full((2, 2), 3.0) for path in axes}
    optimizer = Optimizer(config.optimizer, axes, 100)
    result = optimizer.update(params, gradients, start(params), jnp.asarray(2))
    small = {path: jnp.full((2, 2), 0.1) for path in axes}  # Adam would not see that both are clipped
    second = optimizer.update(result.params, small, result.adam, jnp.asarray(3))
    return jax.tree.map(lambda x: x.tolist(), (result.params, second.params))


def adapters(config: TrainConfig) -> Any:
    lora = config.optimizer.lora
    layer = Linear(nnx.Rngs(params=0), 4, 4, (None, None), lora=adapter(lora, "query"))
    return layer.lora_scale, parameters(config)


@functools.cache
def program(config: TrainConfig) -> Any:
    """The loss as it is traced."""
    size = tiny().vision.image_size
    row = jnp.arange(64)[None] % 7
    batch = Batch(
        row, jnp.full((1, 64), 5), row, jnp.full(1, 64), jnp.ones(1, int), jnp.zeros((1, 1, size, size, 3)), row
    )
    keys = jax.random.split(jax.random.key(0), 1)
    made = ForwardPlan(config.loss, config.remat, config.attention, config.dtype)

    def loss() -> Any:
        rule = GumbelRule(draw_noise(batch, keys, 16), jnp.asarray(1.0))
        share = shares(row, batch.lengths)
        return jax.grad(lambda scale: compute_loss(_scaled(scale), batch, keys, rule, share, made).total)(1.0)

    return str(jax.make_jaxpr(loss)())


def _scaled(scale: Any) -> Any:
    return jax.tree.map(lambda x: x * scale, _model())


@functools.cache
def _model() -> Any:
    return tiny_model(
        dataclasses.replace(tiny(), sparsity=dataclasses.replace(tiny().sparsity, instruct_selector="learned"))
    )


@functools.cache
def trainer(config: TrainConfig) -> Any:
    made = Trainer(tiny(), config, ONE, 10)
    keys = jax.random.key_data(made._keys(jnp.asarray(0), 2)).tolist()
    labels = jnp.array([[5, 6, 7, 8], [5, -100, -100, 8], [5, -100, -100, 8], [5, 6, 7, 8]])
    zero = jnp.zeros((4, 4), int)
    batch = Batch(zero, zero, zero, jnp.full(4, 4), jnp.zeros(4, int), labels=labels)
    frozen = {str(leaf.dtype) for leaf in jax.tree.leaves(abstract_state(made.parameters, config.dtype, ONE).frozen)}
    return made.division, keys, made._shares(batch).token.tolist(), frozen


def mesh(config: TrainConfig) -> Any:
    return make_mesh(config.mesh).shape


def warm_start(config: TrainConfig) -> Any:
    found = Parameters.of(tiny(), config.optimizer, ONE)
    return initial.made_paths(found, tiny(), config)


def made(config: TrainConfig) -> Any:
    """The seed of what no checkpoint gives."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(initial, "fresh", lambda *args: seen.append(args[3]) or {})
        initial.initial_values(Parameters.of(tiny(), config.optimizer, ONE), tiny(), config, ONE)
    return seen


def cadence(config: TrainConfig) -> Any:
    return [loop.due(step, config, last=False, ending=False) for step in range(1, 31)]


def kept(config: TrainConfig) -> Any:
    """What the checkpoints are made with."""
    seen: dict[str, Any] = {}

    class Fake(TrainingCheckpoints):
        def __init__(self, *args: Any, **options: Any) -> None:
            seen.update(options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "TrainingCheckpoints", Fake)
        loop._checkpoints(loop.prepare(config), loop.Options("work"))
    return seen["keep"], seen["keep_best"]


def writers(config: TrainConfig) -> Any:
    from etils import epath

    return len(list(_makers(epath.Path(_folder() / "work"), config, 0, 1)))


def explosion(config: TrainConfig) -> Any:
    recorder = Recorder((), training_samples(config, settle(config))[0], tiny(), config, jax.devices())
    for _ in range(30):
        recorder._watch.problem(1.0)
    return recorder._watch.problem(10.0)


def tau(config: TrainConfig) -> Any:
    return [float(temperature(step, 10, config.gumbel)) for step in (0, 5)]


LORA = LoraConfig(rank=2)
Entry = tuple[Observe, Callable[[], tuple[TrainConfig, TrainConfig]]]
"""What to look at, and two configs that differ in the field; made late, since some need files."""


def entry(observe: Observe, part: str, before: Any = None, **after: Any) -> Entry:
    return observe, lambda: (change(part, **before or {}), change(part, **(before or {}) | after))


def top(observe: Observe, **after: Any) -> Entry:
    return observe, lambda: (_base(), dataclasses.replace(_base(), **after))


def on_data(observe: Observe, before: Callable[[], dict[str, Any]], after: Callable[[], dict[str, Any]]) -> Entry:
    return observe, lambda: (change("data", **before()), change("data", **before() | after()))


def _broken() -> dict[str, Any]:
    """A source with one sample in 12 that nothing can be learned from."""
    records = json.loads(Path(_data("broken", 12)).read_text())
    records[1]["conversations"][1]["value"] = 7
    (_folder() / "broken" / "data.json").write_text(json.dumps(records))
    return {"source": _data("broken", 12), "require_image": False, "on_error": "skip", "max_skipped": 0.5}


def _two() -> dict[str, Any]:
    return {"source": (_data("a"), _data("b", 12))}


CHANGES: dict[type, dict[str, Entry]] = {
    InitConfig: {
        "checkpoint": (warm_start, lambda: (_base(), change("init", checkpoint=_checkpoint()))),
        "fresh": (
            warm_start,
            lambda: (
                change("init", checkpoint=_checkpoint()),
                change("init", checkpoint=_checkpoint(), fresh=("projector",)),
            ),
        ),
        "tokenizer": (
            subject,
            lambda: (
                change("init", checkpoint=_checkpoint()),
                change("init", checkpoint=_checkpoint(), tokenizer=None),
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
                dataclasses.replace(_base(), global_batch_size=4, device_batch_size=1),
                dataclasses.replace(
                    _base(), global_batch_size=4, device_batch_size=1, loss=LossConfig(normalise="per_device")
                ),
            ),
        ),
        "chunk": entry(program, "loss", chunk=16),
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
            lambda: (change("eval", every=1, samples=4), change("eval", every=1, samples=4, source=_data("b", 12))),
        ),
        "images": (
            held_out,
            lambda: (
                change("eval", every=1, samples=4, source=_data("b", 12)),
                change("eval", every=1, samples=4, source=_data("b", 12), images=str(_folder())),
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
        "source": on_data(plan, dict, lambda: {"source": _data("b", 12)}),
        "images": on_data(loaded, dict, lambda: {"images": str(_folder())}),
        "weights": on_data(plan, _two, lambda: {"weights": (2.0, 0.5)}),
        "adapter": on_data(plan, lambda: {"source": "tfds:none"}, lambda: {"adapter": "no.such:adapter"}),
        "index": on_data(index, dict, lambda: {"index": str(_folder() / "elsewhere")}),
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


@pytest.mark.parametrize("case", [case for _, case in CASES], ids=[name for name, _ in CASES])
def test_the_field_changes_something(case: Entry) -> None:
    observe, make = case
    before, after = make()
    assert before != after
    assert observe(before) != observe(after)
