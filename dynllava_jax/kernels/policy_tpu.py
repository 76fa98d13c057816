"""Policy attention on TPUs, by Pallas-Mosaic.

B batch, H query heads, G key/value heads, S sequence, T queries or keys of one tile, E head dimension.

Tiles are square, so that one is either below the diagonal, on it, or never touched: nothing above it is fetched.
Numbers of rows lie along the lanes, [B, H, 1, S], in memory, and are turned upright where a tile needs them so.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from dynllava_jax.kernels import tuning
from dynllava_jax.kernels.exact import exact
from dynllava_jax.kernels.limits import check
from dynllava_jax.kernels.policy_join import Backward, Forward, Rule
from dynllava_jax.kernels.policy_tile import LOWEST, Rows, base2_scale, sight, slopes
from dynllava_jax.kernels.target import target

_LANES = 128
Interpret = bool | pltpu.InterpretParams


def kernel(query: Float[Array, "B H S E"], interpret: Interpret = False) -> "Mosaic":
    """The kernels for such queries.

    Raises:
        NotImplementedError: a dtype or head dimension that they do not serve.
    """
    check(query.dtype, query.shape[3])
    length = query.shape[2]
    tiles = pl.cdiv(length, tuning.tpu_side(None if interpret else target(), query.dtype.itemsize))
    # As many tiles as it takes, each as small as then suffices: nearly all of them is sequence.
    return Mosaic(pl.cdiv(pl.cdiv(length, tiles), _LANES) * _LANES, interpret)


@dataclasses.dataclass(frozen=True)
class Mosaic:
    """See `policy_join.Kernel`.

    Attributes:
        side: queries, and keys, of one tile; a multiple of the lanes.
        interpret: of `pl.pallas_call`.
    """

    side: int
    interpret: Interpret

    def padded(self, length: int, head_dim: int) -> tuple[int, int]:
        return pl.cdiv(length, self.side) * self.side, head_dim

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
        at = _Places(self.side, size, heads // key.shape[1], lambda outer, inner: (outer, jnp.minimum(inner, outer)))
        row = jax.ShapeDtypeStruct((batch, heads, 1, length), jnp.float32)
        argmax = jax.ShapeDtypeStruct(row.shape, jnp.int32)
        upright = [(self.side, _LANES), (self.side, _LANES)]
        out, *rows = self._call(
            functools.partial(_forward, rule=rule),
            (batch, heads, length),
            in_specs=(at.queries, at.keys, at.keys, at.policy, at.whole),
            out_specs=(at.queries, at.row, at.row, at.row),
            out_shape=(jax.ShapeDtypeStruct(query.shape, query.dtype), row, row, argmax),
            scratch=[*((shape, jnp.float32) for shape in upright), (upright[0], jnp.int32), ((self.side, size), None)],
            name="policy_attention",
        )(query, key, value, policy[:, None], leak[:, :, None])
        return Forward(out, *(found[:, :, 0] for found in rows))

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
        args = (query, key, value, cotangent, *(row[:, :, None] for row in rows), policy[:, None])
        tile, line = ((self.side, size), None), ((1, self.side), None)

        def specs(at: _Places) -> tuple[pl.BlockSpec, ...]:
            return (at.queries, at.keys, at.keys, at.queries, *[at.row] * len(rows), at.policy)

        # Outer loop over keys, inner one over the queries that see them.
        at = _Places(self.side, size, ratio, lambda outer, inner: (jnp.maximum(inner, outer), outer))
        each = jax.ShapeDtypeStruct(query.shape, key.dtype if ratio == 1 else jnp.float32)
        of_key, of_value, of_policy = self._call(
            functools.partial(_backward_keys, rule=rule),
            (batch, heads, length),
            in_specs=specs(at),
            out_specs=(at.own_keys, at.own_keys, at.own_policy),
            out_shape=(each, each, jax.ShapeDtypeStruct((batch, heads, 1, length), jnp.float32)),
            scratch=[tile, tile, line],
            name="policy_attention_keys",
        )(*args)
        at = _Places(self.side, size, ratio, lambda outer, inner: (outer, jnp.minimum(inner, outer)))
        of_query = self._call(
            functools.partial(_backward_queries, rule=rule),
            (batch, heads, length),
            in_specs=specs(at),
            out_specs=at.queries,
            out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
            scratch=[tile],
            name="policy_attention_queries",
        )(*args)
        return Backward(of_query, of_key, of_value, of_policy[:, :, 0])

    def _call(self, kernel: Any, sizes: tuple[int, int, int], *, scratch: list[Any], **options: Any) -> Any:
        batch, heads, length = sizes
        tiles = length // self.side
        return pl.pallas_call(
            kernel,
            grid=(batch, heads, tiles, tiles),
            scratch_shapes=[pltpu.VMEM(shape, dtype or jnp.float32) for shape, dtype in scratch],
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "parallel", "arbitrary")),
            interpret=self.interpret,
            **options,
        )


class _Places:
    """Which blocks of the arrays a step of the grid (sample, head, outer, inner) works on."""

    def __init__(self, side: int, size: int, ratio: int, tile: Any):
        """`tile` gives a step's tile of queries and tile of keys; `ratio` query heads share the keys of one."""

        def spec(shape: tuple[int, int], place: Any) -> pl.BlockSpec:
            return pl.BlockSpec((None, None, *shape), place)

        self.queries = spec((side, size), lambda b, h, o, i: (b, h, tile(o, i)[0], 0))
        self.row = spec((1, side), lambda b, h, o, i: (b, h, 0, tile(o, i)[0]))
        self.keys = spec((side, size), lambda b, h, o, i: (b, lax.div(h, ratio), tile(o, i)[1], 0))
        self.policy = pl.BlockSpec((None, 1, side), lambda b, h, o, i: (b, 0, tile(o, i)[1]))
        self.whole = spec((1, size), lambda b, h, o, i: (b, lax.div(h, ratio), 0, 0))
        self.own_keys = spec((side, size), lambda b, h, o, i: (b, h, tile(o, i)[1], 0))
        self.own_policy = spec((1, side), lambda b, h, o, i: (b, h, 0, tile(o, i)[1]))


def _forward(
    query_ref,
    key_ref,
    value_ref,
    policy_ref,
    leak_ref,
    out_ref,
    highest_ref,
    inverse_ref,
    argmax_ref,
    highest,
    total,
    argmax,
    sums,
    *,
    rule,
):
    row, column = pl.program_id(2), pl.program_id(3)

    @pl.when(column == 0)
    def _():
        highest[...] = jnp.full_like(highest, LOWEST)
        total[...] = jnp.zeros_like(total)
        argmax[...] = jnp.zeros_like(argmax)
        sums[...] = jnp.zeros_like(sums)

    def step(diagonal: bool) -> None:
        value = value_ref[...]
        scores = exact(lambda left, right: _products(left, right, 1, 1), query_ref[...], key_ref[...], 1, 1)
        queries, keys = _positions(scores.leading.shape, row, column)
        seen = sight(policy_ref[...], queries, keys, hide=rule.hide, diagonal=diagonal)
        scores = scores.where(seen.visible, LOWEST)
        rounded = scores.rounded()
        before, here = highest[...], jnp.max(rounded, axis=1, keepdims=True)
        larger = jnp.maximum(before, here)
        if rule.argmax:
            first = jnp.min(jnp.where(rounded == here, keys, jnp.iinfo(jnp.int32).max), axis=1, keepdims=True)
            argmax[...] = jnp.where(here > before, first, argmax[...])
        scale = base2_scale(rule.head_dim)
        shrink = jnp.exp2((before - larger) * scale)
        weights = jnp.where(seen.visible, jnp.exp2(scores.above(larger[:, :1]) * scale), 0.0) * seen.weight
        highest[...] = larger
        total[...] = total[...] * shrink + jnp.sum(weights, axis=1, keepdims=True)
        sums[...] = sums[...] * shrink[:, :1] + _products(weights.astype(value.dtype), value, 1, 0)

    pl.when(column < row)(functools.partial(step, False))
    pl.when(column == row)(functools.partial(step, True))

    @pl.when(column == pl.num_programs(3) - 1)
    def _():
        whole = total[...] + rule.eps
        inverse = jnp.where(whole > 0.0, 1.0 / whole, 0.0)  # a row that sees nothing
        out_ref[...] = ((sums[...] + leak_ref[...]) * inverse[:, :1]).astype(out_ref.dtype)
        for found, ref in ((highest[...], highest_ref), (inverse, inverse_ref), (argmax[...], argmax_ref)):
            ref[...] = found.T[:1]


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
    of_key,
    of_value,
    of_policy,
    *,
    rule,
):
    column, row = pl.program_id(2), pl.program_id(3)
    rows = Rows(highest_ref, inverse_ref, argmax_ref, delta_ref, through_ref)

    @pl.when(row == 0)
    def _():
        of_key[...] = jnp.zeros_like(of_key)
        of_value[...] = jnp.zeros_like(of_value)
        of_policy[...] = jnp.zeros_like(of_policy)

    def step(diagonal: bool) -> None:
        query, cotangent = query_ref[...], cotangent_ref[...]
        found = _slopes(
            query, key_ref[...], value_ref[...], cotangent, rows, policy_ref[...], row, column, rule, diagonal
        )
        of_value[...] += _products(found.probability.astype(cotangent.dtype), cotangent, 0, 0)
        of_key[...] += _products(found.score.astype(query.dtype), query, 0, 0)
        of_policy[...] += jnp.sum(found.policy, axis=0, keepdims=True)

    pl.when(column < row)(functools.partial(step, False))
    pl.when(column == row)(functools.partial(step, True))

    @pl.when(row == pl.num_programs(3) - 1)
    def _():
        of_key_ref[...] = (of_key[...] * (1.0 / rule.head_dim**0.5)).astype(of_key_ref.dtype)
        of_value_ref[...] = of_value[...].astype(of_value_ref.dtype)
        of_policy_ref[...] = of_policy[...]


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
    of_query,
    *,
    rule,
):
    row, column = pl.program_id(2), pl.program_id(3)
    rows = Rows(highest_ref, inverse_ref, argmax_ref, delta_ref, through_ref)

    @pl.when(column == 0)
    def _():
        of_query[...] = jnp.zeros_like(of_query)

    def step(diagonal: bool) -> None:
        query, key = query_ref[...], key_ref[...]
        found = _slopes(
            query, key, value_ref[...], cotangent_ref[...], rows, policy_ref[...], row, column, rule, diagonal
        )
        of_query[...] += _products(found.score.astype(key.dtype), key, 1, 0)

    pl.when(column < row)(functools.partial(step, False))
    pl.when(column == row)(functools.partial(step, True))

    @pl.when(column == pl.num_programs(3) - 1)
    def _():
        of_query_ref[...] = (of_query[...] * (1.0 / rule.head_dim**0.5)).astype(of_query_ref.dtype)


def _slopes(query, key, value, cotangent, refs, policy, row, column, rule, diagonal):
    scores = exact(lambda left, right: _products(left, right, 1, 1), query, key, 1, 1)
    queries, keys = _positions(scores.leading.shape, row, column)
    seen = sight(policy, queries, keys, hide=rule.hide, diagonal=diagonal)
    upright = Rows(*(jnp.expand_dims(ref[...][0], 1) for ref in refs))
    shares = jnp.exp2(scores.above(upright.highest) * base2_scale(rule.head_dim)) * upright.inverse
    return slopes(shares, _products(cotangent, value, 1, 1), seen, upright, keys, hide=rule.hide)


def _positions(shape, row, column):
    queries, keys = (lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 1))
    return row * shape[0] + queries, column * shape[1] + keys


def _products(left, right, over_left: int, over_right: int):
    """A matrix product in float32; exact where the operands are."""
    precision = lax.Precision.HIGHEST if left.dtype == jnp.float32 else lax.Precision.DEFAULT
    dimensions = (((over_left,), (over_right,)), ((), ()))
    return lax.dot_general(left, right, dimensions, precision=precision, preferred_element_type=jnp.float32)
