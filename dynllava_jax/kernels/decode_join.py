"""Decode attention in parts: each block of the cache by itself, then all of them and the new token together.

B batch, H query heads, G key/value heads, R = H/G queries per group, P parts of one block, L layers, C capacity of one
block, E head dimension. A kernel says how one block is read; the rest, here, is a few numbers per head.
"""

import math
from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dynllava_jax.kernels.exact import exact
from dynllava_jax.kernels.limits import check
from dynllava_jax.kernels.xla import Blocks

NOTHING = -1e30
"""`highest` of a part without any key: finite, so that nothing becomes NaN, and far below every product."""


class Partial(NamedTuple):
    """Attention over some of the keys, in float32. Not as one logarithm: a large one is rounded coarsely.

    Attributes:
        sums: their values under the exponentials of (product - highest) times the scale; 0 where there are none.
        total: sum of those exponentials.
        highest: largest product of the query and a key.
    """

    sums: Float[Array, "B G P R E"]
    total: Float[Array, "B G P R"]
    highest: Float[Array, "B G P R"]


@runtime_checkable
class Read(Protocol):
    """Attends to the first `filled` entries of one layer of one block, reading no others."""

    def __call__(
        self,
        query: Float[Array, "B G R E"],
        keys: Float[Array, "L B G C E"],
        values: Float[Array, "L B G C E"],
        layer: Int[Array, ""],
        filled: Int[Array, " B"],
    ) -> Partial:
        """The parts that the block was read in."""
        ...


def cached_attention(
    read: Read,
    query: Float[Array, "B H T E"],
    key: Float[Array, "B G T E"],
    value: Float[Array, "B G T E"],
    blocks: Blocks,
    layer: Int[Array, ""],
    lengths: Int[Array, " B"],
) -> Float[Array, "B H T E"]:
    """What `xla.cached_attention` computes, for one new token a sample.

    Raises:
        NotImplementedError: more new tokens, a dtype or a head dimension that the kernels do not serve.
    """
    if query.shape[2] != 1:
        raise NotImplementedError(f"it serves one new token, not {query.shape[2]}")
    check(query.dtype, query.shape[3])
    if any(x.dtype != query.dtype for pair in blocks for x in pair):
        raise NotImplementedError(f"the cache must be {query.dtype.name}, as the queries are")
    grouped = query.reshape(query.shape[0], key.shape[1], -1, query.shape[3])
    parts, start = [_itself(grouped, key, value)], 0
    for keys, values in blocks:
        capacity = keys.shape[3]
        parts.append(read(grouped, keys, values, layer, jnp.clip(lengths - start, 0, capacity)))
        start += capacity
    return _join(parts).reshape(query.shape).astype(query.dtype)


def score_scale(head_dim: int) -> float:
    return 1.0 / math.sqrt(head_dim)


def _itself(query: Float[Array, "B G R E"], key: Float[Array, "B G 1 E"], value: Float[Array, "B G 1 E"]) -> Partial:
    """The token's own key: one score, whose exponential is 1."""
    query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    highest = exact(lambda left, right: jnp.sum(left * right, axis=-1), query, key, -1, -1)[:, :, None]
    return Partial(jnp.broadcast_to(value, query.shape)[:, :, None], jnp.ones_like(highest), highest)


def _join(parts: list[Partial]) -> Float[Array, "B G R E"]:
    sums, total, highest = (jnp.concatenate(each, axis=2) for each in zip(*parts, strict=True))
    above = highest - jnp.max(highest, axis=2, keepdims=True)
    weights = jnp.exp(above * score_scale(sums.shape[-1]))
    return jnp.sum(sums * weights[..., None], axis=2) / jnp.sum(total * weights, axis=2)[..., None]
