"""Policy attention on GPUs, by Pallas-Triton.

B batch, H query heads, G key/value heads, S sequence, E head dimension (padded to a power of two).

A program walks over the tiles whose every key is seen by every query without asking who sees whom, then over those that
touch the diagonal or hold a key that is hidden.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Array, Float, Int

from dynllava_jax.kernels import tuning
from dynllava_jax.kernels.limits import check
from dynllava_jax.kernels.policy_join import Backward, Forward, Rule
from dynllava_jax.kernels.policy_tile import LOWEST, Rows, Sight, base2_scale, sight, slopes
from dynllava_jax.kernels.target import target
from dynllava_jax.kernels.triton import cells, dot, fitting, quick_exp2, row_products, triton_call

_INTERPRETED = tuning.GpuBlocks(*[tuning.Walk(64, 32, 1, 1)] * 3)
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
        side = max(walk.rows for walk in (self.blocks.forward, self.blocks.keys, self.blocks.queries))
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
        walk = self.blocks.forward
        at = _Places(length, size, heads // key.shape[1], walk.rows, falling=True)
        numbers = jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
        out, *rows = self._call(
            _forward,
            query,
            walk,
            rule,
            in_specs=(at.part, at.shared, at.shared, at.policy, at.sample, at.leak),
            out_specs=(at.part, at.row_part, at.row_part, at.row_part),
            out_shape=(query, numbers, numbers, jax.ShapeDtypeStruct(numbers.shape, jnp.int32)),
            name="policy_attention",
        )(query, key, value, policy, _leading(policy, rule), leak)
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
        ratio = heads // key.shape[1]
        rows = _shielded(rows, rule, _is_quick(query))
        args = (query, key, value, cotangent, *rows, policy, _leading(policy, rule))
        each = jax.ShapeDtypeStruct(query.shape, key.dtype if ratio == 1 else jnp.float32)
        walk = self.blocks.keys
        at = _Places(length, size, ratio, walk.rows)
        of_key, of_value, of_policy = self._call(
            _backward_keys,
            query,
            walk,
            rule,
            in_specs=(at.all, at.shared_part, at.shared_part, at.all, *[at.row] * 5, at.policy_part, at.sample),
            out_specs=(at.part, at.part, at.row_part),
            out_shape=(each, each, jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)),
            name="policy_attention_keys",
        )(*args)
        walk = self.blocks.queries
        at = _Places(length, size, ratio, walk.rows, falling=True)
        of_query = self._call(
            _backward_queries,
            query,
            walk,
            rule,
            in_specs=(at.part, at.shared, at.shared, at.part, *[at.row_part] * 5, at.policy, at.sample),
            out_specs=at.part,
            out_shape=query,
            name="policy_attention_queries",
        )(*args)
        return Backward(of_query, of_key, of_value, of_policy)

    def _call(self, kernel: Any, query: Array, walk: tuning.Walk, rule: Rule, **options: Any) -> Any:
        batch, heads, length, _ = query.shape
        exp2 = functools.partial(quick_exp2, interpret=self.interpret)
        return triton_call(
            functools.partial(kernel, rule=rule, side=walk.step, quick=_is_quick(query), exp2=exp2),
            warps=walk.warps,
            stages=walk.stages,
            interpret=self.interpret,
            grid=(length // walk.rows, heads, batch),
            **options,
        )


def _is_quick(query: Array) -> bool:
    """In float32 differences of scores are formed before they are scaled, and nothing is packed into scores."""
    return query.dtype != jnp.float32


def _leading(policy: Float[Array, "B S"], rule: Rule) -> Int[Array, " B"]:
    """How many keys at the beginning of each sample every later query sees."""
    seen = policy > 0 if rule.hide else policy >= 0
    return jnp.where(jnp.all(seen, axis=1), policy.shape[1], jnp.argmin(seen, axis=1)).astype(jnp.int32)


def _shielded(rows: Rows, rule: Rule, quick: bool) -> Rows:
    """Rows that saw nothing get shares of 0 whatever they are compared with.

    For quick kernels `highest` becomes what a scaled score is reduced by to be the logarithm of its share.
    """
    highest = jnp.where(rows.highest < LOWEST / 2, -LOWEST, rows.highest)
    if quick:
        highest = highest * base2_scale(rule.head_dim) - jnp.log2(rows.inverse)
    return rows._replace(highest=highest)


class _Places:
    """Which parts of the arrays a program (tile, head, sample) works on: whole sequences, or one tile of them.

    With `falling`, the last tiles come first, which have the most keys before them: no long one is left for the end.
    """

    def __init__(self, length: int, size: int, ratio: int, rows: int, falling: bool = False):
        def tile(i: Any) -> Any:
            return length // rows - 1 - i if falling else i

        def sequence(count: int, of: int, moves: bool) -> pl.BlockSpec:
            return pl.BlockSpec(
                (None, None, count, size), lambda i, h, b: (b, lax.div(h, of), tile(i) if moves else 0, 0)
            )

        self.all = sequence(length, 1, False)
        self.shared = sequence(length, ratio, False)
        self.part = sequence(rows, 1, True)
        self.shared_part = sequence(rows, ratio, True)
        self.row = pl.BlockSpec((None, None, length), lambda i, h, b: (b, h, 0))
        self.row_part = pl.BlockSpec((None, None, rows), lambda i, h, b: (b, h, tile(i)))
        self.policy = pl.BlockSpec((None, length), lambda i, h, b: (b, 0))
        self.policy_part = pl.BlockSpec((None, rows), lambda i, h, b: (b, tile(i)))
        self.sample = pl.BlockSpec((None,), lambda i, h, b: (b,))
        self.leak = pl.BlockSpec((None, None, size), lambda i, h, b: (b, lax.div(h, ratio), 0))


def _seen(policy, queries, keys, hide, masked) -> Sight:
    seen = sight(policy, queries, keys, hide=hide, diagonal=masked)
    return seen if masked else seen._replace(visible=None)


def _forward(
    query_ref,
    key_ref,
    value_ref,
    policy_ref,
    leading_ref,
    leak_ref,
    out_ref,
    highest_ref,
    inverse_ref,
    argmax_ref,
    *,
    rule,
    side,
    quick,
    exp2,
):
    tile, query, scale = pl.num_programs(0) - 1 - pl.program_id(0), query_ref[...], base2_scale(rule.head_dim)
    rows = query.shape[0]
    queries = tile * rows + jnp.arange(rows)

    def step(index, carry, masked):
        highest, total, argmax, sums = carry
        at = pl.ds(index * side, side)
        key, value, keys = key_ref[at, :], value_ref[at, :], index * side + jnp.arange(side)
        scores = row_products(query, key, lambda part: query_ref[:, part], lambda part: key_ref[at, part])
        seen = _seen(policy_ref[at][None], queries[:, None], keys[None], rule.hide, masked)
        if seen.visible is not None:
            scores = scores.where(seen.visible, LOWEST)
        here, first = _largest(scores.rounded(), index * side, rule.argmax, quick)
        larger = jnp.maximum(highest, here)
        if rule.argmax:
            argmax = jnp.where(here > highest, first, argmax)
        shrink = jnp.exp2((highest - larger) * scale)
        top = jnp.where(larger > LOWEST / 2, larger, 0.0)[:, None]  # where nothing is seen yet, all weights are 0
        weights = exp2(scores.rounded(), scale, top * scale) if quick else jnp.exp2(scores.above(top) * scale)
        weights = weights * seen.weight
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
    clear = jnp.minimum(tile * each, lax.div(leading_ref[...], side))
    carry = lax.fori_loop(0, clear, functools.partial(step, masked=False), carry)
    highest, total, argmax, sums = lax.fori_loop(clear, (tile + 1) * each, functools.partial(step, masked=True), carry)
    whole = total + rule.eps
    inverse = jnp.where(whole > 0.0, 1.0 / whole, 0.0)  # a row that sees nothing
    out_ref[...] = ((sums + leak_ref[...][None]) * inverse[:, None]).astype(out_ref.dtype)
    highest_ref[...], inverse_ref[...], argmax_ref[...] = highest, inverse, argmax


def _largest(scores, start, argmax, quick):
    """The largest score of each row, and, where `argmax` asks for it, the position of a key that has it.

    The quick way writes the key's place in the tile into the last bits of its score, 7 of 24: finding both is then
    as much work as finding one, and a maximum that is off by 2**-17 of itself serves as well.
    """
    places = jnp.arange(scores.shape[1])[None]
    if argmax and quick:
        low = scores.shape[1] - 1
        packed = (lax.bitcast_convert_type(scores, jnp.int32) & ~low) | places
        here = jnp.max(lax.bitcast_convert_type(packed, jnp.float32), axis=1)
        return here, start + (lax.bitcast_convert_type(here, jnp.int32) & low)
    here = jnp.max(scores, axis=1)
    if not argmax:
        return here, start
    return here, start + jnp.min(jnp.where(scores == here[:, None], places, scores.shape[1]), axis=1)


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
    leading_ref,
    of_key_ref,
    of_value_ref,
    of_policy_ref,
    *,
    rule,
    side,
    quick,
    exp2,
):
    tile, key, value, policy = pl.program_id(0), key_ref[...], value_ref[...], policy_ref[...]
    keys = tile * key.shape[0] + jnp.arange(key.shape[0])
    refs = Rows(highest_ref, inverse_ref, argmax_ref, delta_ref, through_ref)

    # Keys stand along the first axis here, so that the tile multiplies queries and cotangents as it is: turned around,
    # it would not fit the registers.
    def step(index, carry, masked):
        of_key, of_value, of_policy = carry
        at = pl.ds(index * side, side)
        query, cotangent, queries = query_ref[at, :], cotangent_ref[at, :], index * side + jnp.arange(side)
        scores = row_products(key, query, lambda part: key_ref[:, part], lambda part: query_ref[at, part])
        rows = Rows(*(ref[at][None] for ref in refs))
        products = row_products(
            value, cotangent, lambda part: value_ref[:, part], lambda part: cotangent_ref[at, part]
        ).rounded()
        seen = _seen(policy[:, None], queries[None], keys[:, None], rule.hide, masked)
        shares = _shares(scores, rows, rule, quick, exp2)
        found = slopes(shares, products, seen, rows, keys[:, None], hide=rule.hide)
        of_value = of_value + dot(found.probability.astype(cotangent.dtype), cotangent)
        of_key = of_key + dot(found.score.astype(query.dtype), query)
        return of_key, of_value, of_policy + jnp.sum(found.policy, axis=1)

    zeros = jnp.zeros(key.shape, jnp.float32)
    count, tiles = key.shape[0], query_ref.shape[0] // side
    carry = (zeros, zeros, jnp.zeros((count,)))
    clear = jnp.where((tile + 1) * count <= leading_ref[...], (tile + 1) * (count // side), tiles)
    carry = lax.fori_loop(tile * (count // side), clear, functools.partial(step, masked=True), carry)
    of_key, of_value, of_policy = lax.fori_loop(clear, tiles, functools.partial(step, masked=False), carry)
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
    leading_ref,
    of_query_ref,
    *,
    rule,
    side,
    quick,
    exp2,
):
    tile, query, cotangent = pl.num_programs(0) - 1 - pl.program_id(0), query_ref[...], cotangent_ref[...]
    count, size = query.shape
    queries = tile * count + jnp.arange(count)
    refs = Rows(highest_ref, inverse_ref, argmax_ref, delta_ref, through_ref)
    rows = Rows(*(ref[...][:, None] for ref in refs))

    def step(index, of_query, masked):
        at = pl.ds(index * side, side)
        key, value, keys = key_ref[at, :], value_ref[at, :], index * side + jnp.arange(side)
        scores = row_products(query, key, lambda part: query_ref[:, part], lambda part: key_ref[at, part])
        products = row_products(
            cotangent, value, lambda part: cotangent_ref[:, part], lambda part: value_ref[at, part]
        ).rounded()
        seen = _seen(policy_ref[at][None], queries[:, None], keys[None], rule.hide, masked)
        shares = _shares(scores, rows, rule, quick, exp2)
        found = slopes(shares, products, seen, rows._replace(argmax=None), keys[None], hide=rule.hide)
        return of_query + dot(found.score.astype(key.dtype), key)

    # The masked tiles are a loop of their own: written out after the other one, they would not fit the registers.
    each = count // side
    clear = jnp.minimum(tile * each, lax.div(leading_ref[...], side))
    of_query = lax.fori_loop(0, clear, functools.partial(step, masked=False), jnp.zeros(query.shape))
    of_query = lax.fori_loop(clear, (tile + 1) * each, functools.partial(step, masked=True), of_query)
    if not rule.hide:
        # What flows through the largest score goes to one key of each row: fetched once, not looked for in every tile.
        held = pltriton.load(key_ref.at[cells(argmax_ref[...], jnp.arange(size))])
        of_query = of_query + rows.through * held.astype(jnp.float32)
    of_query_ref[...] = (of_query * (1.0 / rule.head_dim**0.5)).astype(of_query_ref.dtype)


def _shares(scores, rows, rule, quick, exp2):
    """What each value's share of its row's output would be with a policy of 1, seen or not."""
    scale = base2_scale(rule.head_dim)
    if quick:
        return exp2(scores.rounded(), scale, rows.highest)
    return jnp.exp2(scores.above(rows.highest) * scale) * rows.inverse
