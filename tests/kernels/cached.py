"""Attention on a cache: what to call it with, by each implementation, and by the formula in float64.

B batch, H query heads, G key/value heads, L layers, C capacity of a block, E head dimension.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynllava_jax.kernels import decode_join, decode_tpu, decode_triton, xla

MAKE = {"triton": decode_triton.kernel, "tpu": decode_tpu.kernel}
KERNELS = {name: functools.partial(decode_join.cached_attention, make()) for name, make in MAKE.items()}
L, B = 2, 2


class Case(NamedTuple):
    """A cache and who reads it."""

    heads: int
    groups: int
    head_dim: int
    capacities: tuple[int, ...]


# Each needs several tiles, the last of which ends outside the cache.
CASES = [
    Case(4, 4, 128, (70, 45)),
    Case(4, 2, 64, (600, 30, 1)),
    Case(3, 1, 80, (530,)),
    Case(10, 1, 96, (150, 140)),
]


@functools.cache
def attend(kernel: str, interpret: Any = True) -> Callable[..., jax.Array]:
    if kernel == "xla":
        return jax.jit(xla.cached_attention)
    return jax.jit(functools.partial(decode_join.cached_attention, MAKE[kernel](interpret=interpret)))


def arguments(
    case: Case,
    lengths: list[int],
    layer: int,
    *,
    layers: int = L,
    seed: int = 0,
    peak: float = 1.0,
    dtype: Any = jnp.float32,
) -> tuple[Any, ...]:
    """Random ones. Whatever must not be read, the other layers and all beyond a length, is no number."""
    rng, batch = np.random.default_rng(seed), len(lengths)
    query, key, value = (
        jnp.asarray(rng.standard_normal((batch, count, 1, case.head_dim)) * scale, dtype)
        for count, scale in ((case.heads, peak), (case.groups, 1.0), (case.groups, 1.0))
    )
    blocks, start = [], 0
    for capacity in case.capacities:
        pair = rng.standard_normal((2, layers, batch, case.groups, capacity, case.head_dim))
        pair[:, np.arange(layers) != layer] = np.nan
        for sample, length in enumerate(lengths):
            pair[:, :, sample, :, max(0, length - start) :] = np.nan
        blocks.append(tuple(jnp.asarray(x, dtype) for x in pair))
        start += capacity
    return query, key, value, blocks, jnp.asarray(layer), jnp.asarray(lengths)


def truth(
    query: jax.Array, key: jax.Array, value: jax.Array, blocks: Any, layer: jax.Array, lengths: jax.Array
) -> np.ndarray:
    """The formula in float64."""
    double = [np.asarray(x, np.float64) for x in (query, key, value)]
    cache = [
        np.concatenate([np.asarray(x, np.float64)[int(layer)] for x in side], axis=2)
        for side in zip(*blocks, strict=True)
    ]
    batch, heads, _, head_dim = double[0].shape
    out = np.zeros((batch, heads, 1, head_dim))
    for sample, head in np.ndindex(batch, heads):
        group = head // (heads // double[1].shape[1])
        keys, values = (
            np.concatenate([held[sample, group, : lengths[sample]], new[sample, group]])
            for held, new in zip(cache, double[1:], strict=True)
        )
        scores = keys @ double[0][sample, head, 0] / math.sqrt(head_dim)
        weights = np.exp(scores - scores.max())
        out[sample, head, 0] = weights @ values / weights.sum()
    return out


def abstract(case: Case, dtype: Any, rows: int = B) -> list[Any]:
    def of(*shape: int, dtype: Any = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    new = of(rows, case.groups, 1, case.head_dim)
    blocks = [(of(4, rows, case.groups, capacity, case.head_dim),) * 2 for capacity in case.capacities]
    query = of(rows, case.heads, 1, case.head_dim)
    return [query, new, new, blocks, of(dtype=jnp.int32), of(rows, dtype=jnp.int32)]
