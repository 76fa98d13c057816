"""Policy attention on GPUs, by Pallas-Triton.

B batch, H query heads, G key/value heads, S sequence, E head dimension (padded to a power of two).

A program walks over the tiles that lie below the diagonal without looking at positions, then over those that touch it.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from dynllava_jax.kernels import tuning
from dynllava_jax.kernels.limits import check
from dynllava_jax.kernels.policy_join import Backward, Forward, Rule
from dynllava_jax.kernels.policy_tile import LOWEST, Rows, base2_scale, sight, slopes
from dynllava_jax.kernels.target import target
from dynllava_jax.kernels.triton import dot, fitting, row_products, triton_call

_INTERPRETED = tuning.GpuBlocks(64, 32, 1, 1, 32, 1, 1)
"""Small tiles, so that short sequences have several."""


def kernel(query: Float[Array, "B H S E"], interpret: bool = False) -> "Triton":
    """The kernels for such queries.

    Raises:
        NotImplementedError: a dtype, head dimension or GPU that they do not serve.
    """
    check(query.dtype, query.shape[3])
    blocks = _INTERPRETED if interpret else tuning.gpu_blocks(target(), query.shape[3], query.dtype.itemsize)
    return Triton(blocks, interpret)


@dataclasses.dataclass(frozen=True)
class Triton:
    """See `policy_join.Kernel`."""

    blocks: tuning.GpuBlocks
    interpret: bool

    def padded(self, length: int, head_dim: int) -> tuple[int, int]:
        side = max(self.blocks.rows, self.blocks.side)
        return pl.cdiv(length, side) * side, fitting(head_dim)

    def forward(
        self,
        query: Float[Array, "B H S E"],
        key: Float[Array, "B G S E"],
        value: Float[Array, "B G S E"],
        policy: Float[Array, "B S"],
        leak: Float[Array, "B G E"],
        rule: Rule,
    ) -> Forward:
        batch, heads, length, size = query.shape
        at = _Places(length, size, heads // key.shape[1])
        part, row = at.part(self.blocks.rows), at.row_part(self.blocks.rows)
        numbers = jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
        out, *rows = triton_call(
            functools.partial(_forward, rule=rule, side=self.blocks.keys),
            warps=self.blocks.warps,
            stages=self.blocks.stages,
            interpret=self.interpret,
            grid=(length // self.blocks.rows, heads, batch),
            in_specs=(part, at.shared, at.shared, at.policy, at.leak),
            out_specs=(part, row, row, row),
            out_shape=(query, numbers, numbers, jax.ShapeDtypeStruct(numbers.shape, jnp.int32)),
            name="policy_attention",
        )(query, key, value, policy, leak)
        return Forward(out, *rows)

    def backward(
        self,
        query: Float[Array, "B H S E"],
        key: Float[Array, "B G S E"],
        value: Float[Array, "B G S E"],
        policy: Float[Array, "B S"],
        cotangent: Float[Array, "B H S E"],
        rows: Rows,
        rule: Rule,
    ) -> Backward:
        batch, heads, length, size = query.shape
        ratio, side = heads // key.shape[1], self.blocks.side
        at = _Places(length, size, ratio)
        part, row = at.part(side), at.row_part(side)
        each = jax.ShapeDtypeStruct(query.shape, key.dtype if ratio == 1 else jnp.float32)

        def call(kernel: Any, name: str, **specs: Any) -> Any:
            return triton_call(
                functools.partial(kernel, rule=rule, side=side),
                warps=self.blocks.side_warps,
                stages=self.blocks.side_stages,
                interpret=self.interpret,
                grid=(length // side, heads, batch),
                name=f"policy_attention_{name}",
                **specs,
            )(query, key, value, cotangent, *rows, policy)

        of_key, of_value, of_policy = call(
            _backward_keys,
            "keys",
            in_specs=(at.all, at.shared_part(side), at.shared_part(side), at.all, *[at.row] * 5, at.policy_part(side)),
            out_specs=(part, part, row),
            out_shape=(each, each, jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)),
        )
        of_query = call(
            _backward_queries,
            "queries",
            in_specs=(part, at.shared, at.shared, part, *[row] * 5, at.policy),
            out_specs=part,
            out_shape=query,
        )
        return Backward(of_query, of_key, of_value, of_policy)


class _Places:
    """Which parts of the arrays a program (tile, head, sample) works on: whole sequences, or one tile of them."""

    def __init__(self, length: int, size: int, ratio: int):
        def sequence(rows: int, of: int, moves: bool) -> pl.BlockSpec:
            return pl.BlockSpec((None, None, rows, size), lambda i, h, b: (b, lax.div(h, of), i if moves else 0, 0))

        self.all = sequence(length, 1, False)
        self.shared = sequence(length, ratio, False)
        self.row = pl.BlockSpec((None, None, length), lambda i, h, b: (b, h, 0))
        self.policy = pl.BlockSpec((None, length), lambda i, h, b: (b, 0))
        self.leak = pl.BlockSpec((None, None, size), lambda i, h, b: (b, lax.div(h, ratio), 0))
        self.part = lambda rows: sequence(rows, 1, True)
        self.shared_part = lambda rows: sequence(rows, ratio, True)
        self.row_part = lambda rows: pl.BlockSpec((None, None, rows), lambda i, h, b: (b, h, i))
        self.policy_part = lambda rows: pl.BlockSpec((None, rows), lambda i, h, b: (b, i))


def _forward(
    query_ref, key_ref, value_ref, policy_ref, leak_ref, out_ref, highest_ref, inverse_ref, argmax_ref, *, rule, side
):
    tile, query, scale = pl.program_id(0), query_ref[...], base2_scale(rule.head_dim)
    rows = query.shape[0]
    queries = tile * rows + jnp.arange(rows)

    def step(index, carry, diagonal):
        highest, total, argmax, sums = carry
        at = pl.ds(index * side, side)
        key, value, keys = key_ref[at, :], value_ref[at, :], index * side + jnp.arange(side)
        scores = row_products(query, key, lambda part: query_ref[:, part], lambda part: key_ref[at, part])
        seen = sight(policy_ref[at][None], queries[:, None], keys[None], hide=rule.hide, diagonal=diagonal)
        scores = jnp.where(seen.visible, scores, LOWEST)
        here = jnp.max(scores, axis=1)
        larger = jnp.maximum(highest, here)
        if not rule.hide:
            first = jnp.min(jnp.where(scores == here[:, None], keys[None], jnp.iinfo(jnp.int32).max), axis=1)
            argmax = jnp.where(here > highest, first, argmax)
        shrink = jnp.exp2((highest - larger) * scale)
        weights = jnp.where(seen.visible, jnp.exp2((scores - larger[:, None]) * scale), 0.0) * seen.weight
        total = total * shrink + jnp.sum(weights, axis=1)
        sums = sums * shrink[:, None] + dot(weights.astype(value.dtype), value)
        return larger, total, argmax, sums

    carry = (
        jnp.full((rows,), LOWEST),
        jnp.zeros((rows,)),
        jnp.zeros((rows,), jnp.int32),
        jnp.zeros(query.shape, jnp.float32),
    )
    each = rows // side
    carry = lax.fori_loop(0, tile * each, functools.partial(step, diagonal=False), carry)
    highest, total, argmax, sums = lax.fori_loop(
        tile * each, (tile + 1) * each, functools.partial(step, diagonal=True), carry
    )
    whole = total + rule.eps
    inverse = jnp.where(whole > 0.0, 1.0 / whole, 0.0)  # a row that sees nothing
    out_ref[...] = ((sums + leak_ref[...][None]) * inverse[:, None]).astype(out_ref.dtype)
    highest_ref[...], inverse_ref[...], argmax_ref[...] = highest, inverse, argmax


def _backward_keys(
    query_ref,
    key_ref,
    value_ref,
    cotangent_ref,
    highest_ref,
    inverse_ref,
    argmax_ref,
    delta_ref,
    through_ref,
    policy_ref,
    of_key_ref,
    of_value_ref,
    of_policy_ref,
    *,
    rule,
    side,
):
    tile, key, value, policy = pl.program_id(0), key_ref[...], value_ref[...], policy_ref[...]
    scale = base2_scale(rule.head_dim)
    keys = tile * side + jnp.arange(side)
    refs = Rows(highest_ref, inverse_ref, argmax_ref, delta_ref, through_ref)

    # Keys stand along the first axis here, so that the tile multiplies queries and cotangents as it is: turned around,
    # it would not fit the registers.
    def step(index, carry, diagonal):
        of_key, of_value, of_policy = carry
        at = pl.ds(index * side, side)
        query, cotangent, queries = query_ref[at, :], cotangent_ref[at, :], index * side + jnp.arange(side)
        scores = row_products(key, query, lambda part: key_ref[:, part], lambda part: query_ref[at, part])
        seen = sight(policy[:, None], queries[None], keys[:, None], hide=rule.hide, diagonal=diagonal)
        rows = Rows(*(ref[at][None] for ref in refs))
        products = row_products(value, cotangent, lambda part: value_ref[:, part], lambda part: cotangent_ref[at, part])
        found = slopes(scores, products, seen, rows, keys[:, None], hide=rule.hide, scale=scale)
        of_value = of_value + dot(found.probability.astype(cotangent.dtype), cotangent)
        of_key = of_key + dot(found.score.astype(query.dtype), query)
        return of_key, of_value, of_policy + jnp.sum(found.policy, axis=1)

    zeros = jnp.zeros(key.shape, jnp.float32)
    carry = step(tile, (zeros, zeros, jnp.zeros((side,))), True)
    tiles = query_ref.shape[0] // side
    of_key, of_value, of_policy = lax.fori_loop(tile + 1, tiles, functools.partial(step, diagonal=False), carry)
    of_key_ref[...] = (of_key * (1.0 / rule.head_dim**0.5)).astype(of_key_ref.dtype)
    of_value_ref[...] = of_value.astype(of_value_ref.dtype)
    of_policy_ref[...] = of_policy


def _backward_queries(
    query_ref,
    key_ref,
    value_ref,
    cotangent_ref,
    highest_ref,
    inverse_ref,
    argmax_ref,
    delta_ref,
    through_ref,
    policy_ref,
    of_query_ref,
    *,
    rule,
    side,
):
    tile, query, cotangent, scale = pl.program_id(0), query_ref[...], cotangent_ref[...], base2_scale(rule.head_dim)
    queries = tile * side + jnp.arange(side)
    refs = Rows(highest_ref, inverse_ref, argmax_ref, delta_ref, through_ref)
    rows = Rows(*(ref[...][:, None] for ref in refs))

    def step(index, of_query, diagonal):
        at = pl.ds(index * side, side)
        key, value, keys = key_ref[at, :], value_ref[at, :], index * side + jnp.arange(side)
        scores = row_products(query, key, lambda part: query_ref[:, part], lambda part: key_ref[at, part])
        seen = sight(policy_ref[at][None], queries[:, None], keys[None], hide=rule.hide, diagonal=diagonal)
        products = row_products(cotangent, value, lambda part: cotangent_ref[:, part], lambda part: value_ref[at, part])
        found = slopes(scores, products, seen, rows, keys[None], hide=rule.hide, scale=scale)
        return of_query + dot(found.score.astype(key.dtype), key)

    # The tile on the diagonal is a loop of its own: written out after the other one, it would not fit the registers.
    of_query = lax.fori_loop(0, tile, functools.partial(step, diagonal=False), jnp.zeros(query.shape, jnp.float32))
    of_query = lax.fori_loop(tile, tile + 1, functools.partial(step, diagonal=True), of_query)
    of_query_ref[...] = (of_query * (1.0 / rule.head_dim**0.5)).astype(of_query_ref.dtype)
