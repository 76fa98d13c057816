"""Decode attention in parts: each block of the cache by itself, then all of them and the new token together.

B batch, H query heads, G key/value heads, R = H/G queries per group, P parts of one block, L layers, C capacity of one
block, T new tokens, E head dimension. A kernel says how one block is read; the rest, here, is a few numbers per head.
"""

import dataclasses
import math
from collections.abc import Sequence
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
    """Attends to what one layer of one block of the cache holds, reading nothing else."""

    def __call__(
        self,
        query: Float[Array, "B G R E"],
        keys: Float[Array, "L B G C E"],
        values: Float[Array, "L B G C E"],
        layer: Int[Array, ""],
        lengths: Int[Array, " B"],
        start: int,
    ) -> Partial:
        """The parts that the block was read in; it begins at position `start`, and `lengths` count from 0."""
        ...


@runtime_checkable
class Join(Protocol):
    """Brings the parts of all blocks and the new token's own key and value together, in the dtype of the query."""

    def __call__(
        self,
        query: Float[Array, "B G R E"],
        key: Float[Array, "B G 1 E"],
        value: Float[Array, "B G 1 E"],
        parts: Sequence[Partial],
    ) -> Float[Array, "B G R E"]:
        """The attention's output."""
        ...


def join(
    query: Float[Array, "B G R E"],
    key: Float[Array, "B G 1 E"],
    value: Float[Array, "B G 1 E"],
    parts: Sequence[Partial],
) -> Float[Array, "B G R E"]:
    """See `Join`; by XLA."""
    sums, total, highest = (
        jnp.concatenate(each, axis=2) for each in zip(_itself(query, key, value), *parts, strict=True)
    )
    above = highest - jnp.max(highest, axis=2, keepdims=True)
    weights = jnp.exp(above * score_scale(sums.shape[-1]))
    joined = jnp.sum(sums * weights[..., None], axis=2) / jnp.sum(total * weights, axis=2)[..., None]
    return joined.astype(query.dtype)


@dataclasses.dataclass(frozen=True)
class DecodeKernel:
    """How a cache is read, and how the parts are brought together."""

    read: Read
    join: Join = join


def cached_attention(
    kernel: DecodeKernel,
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
    parts, start = [], 0
    for keys, values in blocks:
        parts.append(kernel.read(grouped, keys, values, layer, lengths, start))
        start += keys.shape[3]
    return kernel.join(grouped, key, value, parts).reshape(query.shape)


def score_scale(head_dim: int) -> float:
    return 1.0 / math.sqrt(head_dim)


def _itself(query: Float[Array, "B G R E"], key: Float[Array, "B G 1 E"], value: Float[Array, "B G 1 E"]) -> Partial:
    """The token's own key: one score."""
    query, key, value = (x.astype(jnp.float32) for x in (query, key, value))
    score = exact(lambda left, right: jnp.sum(left * right, axis=-1), query, key, -1, -1)
    highest = score.rounded()
    weight = jnp.exp(score.above(highest) * score_scale(query.shape[-1]))
    return Partial(*(x[:, :, None] for x in (value * weight[..., None], weight, highest)))
