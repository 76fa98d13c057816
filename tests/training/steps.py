"""Steps of the tiny model on one batch: each config's trainer is made and traced once, each run done once."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynllava_jax.config.training import LoraConfig, OptimizerConfig, TrainConfig
from dynllava_jax.data.batch import Batch
from dynllava_jax.nn.flat import flatten
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.sharding.specs import activation_sharding
from dynllava_jax.testing import tiny_config, tiny_model
from dynllava_jax.training.state import Parameters, TrainState, begin, fresh
from dynllava_jax.training.step import Trainer
from tests.training.batches import mixed

TOTAL = 10
"""Steps of every run, as its schedules see it."""


class Run(NamedTuple):
    """Metrics of every step; parameters after the last; the moments of the gradient after the first."""

    rows: list[dict[str, float]]
    params: dict[str, np.ndarray]
    gradient: dict[str, np.ndarray]


@functools.cache
def trainer_of(config: TrainConfig) -> Trainer:
    """On the config's mesh."""
    return Trainer(tiny_config(), config, make_mesh(config.mesh), TOTAL)


def first_state(trainer: Trainer, sharp: bool = True) -> TrainState:
    """The tiny model (`sharp` attention), or usual weights."""
    values = {path: jnp.copy(x) for path, x in _fresh(trainer.config.optimizer.lora).items()}  # `begin` takes them
    if sharp:
        values |= flatten(tiny_model())
    return begin(trainer.parameters, values, trainer.config.dtype, trainer.mesh)


@functools.cache
def _fresh(lora: LoraConfig | None) -> dict[str, jax.Array]:
    optimizer = OptimizerConfig(lora=lora)
    parameters = Parameters.of(tiny_config(), optimizer, make_mesh("data=1"))
    # On no mesh, so that any trainer may take them.
    return {path: jnp.asarray(np.asarray(x)) for path, x in fresh(parameters, tiny_config(), optimizer, 0).items()}


def placed(batch: Batch, trainer: Trainer) -> Batch:
    def put(x: jax.Array) -> jax.Array:
        return jax.device_put(x, activation_sharding(x.shape, ("batch", *(None,) * (x.ndim - 1)), trainer.mesh))

    return jax.tree.map(put, batch)


@functools.cache
def run(config: TrainConfig, steps: int = TOTAL, sharp: bool = True) -> Run:
    trainer = trainer_of(config)
    state, batch = first_state(trainer, sharp), placed(mixed(tiny_config()), trainer)
    rows, gradient = [], {}
    for step in range(steps):
        state, metrics = trainer.step(state, batch)
        rows.append({name: float(value) for name, value in metrics.items()})
        if step == 0:
            gradient = jax.tree.map(np.asarray, state.adam.mean)
    return Run(rows, jax.tree.map(np.asarray, state.params), gradient)
