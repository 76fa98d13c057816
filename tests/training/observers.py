"""What can be seen of a training run's config: plans, parameters, programs, what is written."""

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from dynllava_jax.config.data import DataConfig
from dynllava_jax.config.presets import tiny
from dynllava_jax.config.training import (
    InitConfig,
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

ONE = make_mesh("data=1", jax.devices()[:1])


@functools.cache
def folder_of() -> Path:
    return Path(tempfile.mkdtemp())


@functools.cache
def data_of(name: str, count: int = 24) -> str:
    return str(write_data(folder_of() / name, count, seed=count))


@functools.cache
def _tokenizer() -> str:
    folder = folder_of() / "tokenizer"
    folder.mkdir()
    write_tokenizer(folder)
    return str(folder)


@functools.cache
def checkpoint_of() -> str:
    from dynllava_jax.checkpoint import store
    from dynllava_jax.checkpoint.leaves import item_of, leaf_shapes

    shapes = sorted(leaf_shapes(tiny()).items(), key=lambda leaf: item_of(leaf[0]))
    files = {file.name: file.read_bytes() for file in Path(_tokenizer()).iterdir()}
    leaves = ((name, jnp.ones(shape)) for name, shape in shapes)
    store.write(folder_of() / "model", tiny(), leaves, extras=store.Extras(files=files))  # pyright: ignore
    return str(folder_of() / "model")


def base_config(**options: Any) -> TrainConfig:
    given = DataConfig(data_of("a"), index=str(folder_of() / "index"), max_length=256, workers=0)
    init = InitConfig(tokenizer=_tokenizer())
    return TrainConfig(**({"model": "tiny", "init": init, "data": given, "global_batch_size": 8} | options))


def change(part: str, **values: Any) -> TrainConfig:
    base = base_config()
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

    return len(list(_makers(epath.Path(folder_of() / "work"), config, 0, 1)))


def explosion(config: TrainConfig) -> Any:
    recorder = Recorder((), training_samples(config, settle(config))[0], tiny(), config, jax.devices())
    for _ in range(30):
        recorder._watch.problem(1.0)
    return recorder._watch.problem(10.0)


def tau(config: TrainConfig) -> Any:
    return [float(temperature(step, 10, config.gumbel)) for step in (0, 5)]
