"""Layers of one shape as one module with a leading `layers` axis: built by vmap, run by scan."""

from collections.abc import Callable
from typing import TypeVar

import jax
from flax import nnx

Layer = TypeVar("Layer", bound=nnx.Module)


def stack(rngs: nnx.Rngs, count: int, make: Callable[[nnx.Rngs], Layer]) -> Layer:
    """`count` layers from independent keys; every parameter gains a leading axis of that length."""
    return jax.vmap(lambda key: make(nnx.Rngs(params=key)))(jax.random.split(rngs.params(), count))


def num_layers(layers: nnx.Module) -> int:
    return jax.tree.leaves(layers)[0].shape[0]
