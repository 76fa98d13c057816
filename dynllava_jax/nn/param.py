"""One line declares a parameter: its shape, the names of its axes, its initialiser."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

Initializer = Callable[[jax.Array, tuple[int, ...]], jax.Array]

AXES = "axes"
"""Our own metadata key. Flax's `out_sharding` would shard at construction and need a mesh to build a model."""


def param(rngs: nnx.Rngs, shape: tuple[int, ...], axes: tuple[str | None, ...], init: Initializer) -> nnx.Param:
    """A float32 parameter that knows its axis names (see `sharding.rules` for what they become on a mesh)."""
    if len(shape) != len(axes):
        raise ValueError(f"shape {shape} and axes {axes} differ in length")
    metadata: dict[str, Any] = {AXES: axes}
    return nnx.Param(init(rngs.params(), shape), **metadata)


def normal(std: float) -> Initializer:
    return lambda key, shape: std * jax.random.normal(key, shape, jnp.float32)


def zeros(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    del key
    return jnp.zeros(shape, jnp.float32)


def ones(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    del key
    return jnp.ones(shape, jnp.float32)
