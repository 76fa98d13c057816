"""Decode attention on TPUs, by Pallas-Mosaic: tiles of the cache stream through fast memory while they are needed.

B batch, G key/value heads, R queries per group, L layers, C capacity of one block, E head dimension.

Layer and lengths are known before a tile is fetched (scalar prefetch): the tiles beyond a sample's length point to its
last one, which is there already, so that they cost no read.

A cache whose capacity lies along the lanes (see `layout`) is read as it lies: turned around for the kernel, it keeps
its place in memory.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from dynllava_jax.kernels import tuning
from dynllava_jax.kernels.decode_join import NOTHING, DecodeKernel, Partial, score_scale
from dynllava_jax.kernels.exact import exact
from dynllava_jax.kernels.layout import across_lanes
from dynllava_jax.kernels.target import target

_LANES = 128
_SUBLANES = 8


def kernel(interpret: bool | pltpu.InterpretParams = False) -> DecodeKernel:
    """How TPUs read a cache."""
    return DecodeKernel(functools.partial(_read, interpret=interpret))


def _read(
    query: Float[Array, "B G R E"],
    keys: Float[Array, "L B G C E"],
    values: Float[Array, "L B G C E"],
    layer: Int[Array, ""],
    lengths: Int[Array, " B"],
    start: int,
    *,
    interpret: bool | pltpu.InterpretParams = False,
) -> Partial:
    """See `decode_join.Read`.

    Raises:
        NotImplementedError: a TPU that the kernels were never compiled for.
    """
    (batch, groups, ratio, size), capacity = query.shape, keys.shape[3]
    if not interpret:
        tuning.tpu_side(target(), keys.dtype.itemsize)
    filled = jnp.clip(lengths - start, 0, capacity)
    rows = pl.cdiv(ratio, _SUBLANES) * _SUBLANES
    tile, across = min(tuning.TPU_DECODE.keys, capacity), across_lanes(size)
    heads = _heads(groups, tile * size * keys.dtype.itemsize)

    def small(sample, group, step, layer, filled):
        return sample, group, 0, 0

    def large(sample, group, step, layer, filled):
        at = _tile_to_read(step, filled[sample], tile)
        return (layer[0], sample, group, *((0, at) if across else (at, 0)))

    def shared(columns: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, heads, rows, columns), small)

    cached = pl.BlockSpec((None, None, heads, *((size, tile) if across else (tile, size))), large)
    if across:
        keys, values = keys.swapaxes(3, 4), values.swapaxes(3, 4)
    sums, *rest = pl.pallas_call(
        functools.partial(_kernel, tile=tile, across=across),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(batch, groups // heads, pl.cdiv(capacity, tile)),
            in_specs=(shared(size), cached, cached),
            out_specs=(shared(size), shared(_LANES), shared(_LANES)),
            scratch_shapes=[pltpu.VMEM((heads, rows, columns), jnp.float32) for columns in (_LANES, _LANES, size)],
        ),
        out_shape=(
            jax.ShapeDtypeStruct((batch, groups, rows, size), jnp.float32),
            *[jax.ShapeDtypeStruct((batch, groups, rows, _LANES), jnp.float32)] * 2,
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        interpret=interpret,
        name="decode_attention",
    )(layer[None], filled, jnp.pad(query, ((0, 0), (0, 0), (0, rows - ratio), (0, 0))), keys, values)
    return Partial(sums[:, :, None, :ratio], *(x[:, :, None, :ratio, 0] for x in rest))


def _kernel(
    layer_ref,
    filled_ref,
    query_ref,
    key_ref,
    value_ref,
    sums_ref,
    total_ref,
    highest_ref,
    highest,
    total,
    sums,
    *,
    tile,
    across,
):
    del layer_ref  # the tiles that arrive are already its own
    step, filled = pl.program_id(2), filled_ref[pl.program_id(0)]

    @pl.when(step == 0)
    def _():
        highest[...] = jnp.full_like(highest, NOTHING)
        total[...] = jnp.zeros_like(total)
        sums[...] = jnp.zeros_like(sums)

    @pl.when(step * tile < filled)
    def _():
        query, key = query_ref[...], key_ref[...]
        scale, over = score_scale(query.shape[-1]), 1 if across else 2
        scores = exact(lambda left, right: _products(left, right, over), query, key, 2, over)
        held = step * tile + lax.broadcasted_iota(jnp.int32, scores.leading.shape, 2) < filled
        scores = scores.where(held, NOTHING)
        before = highest[...]
        larger = jnp.maximum(before, jnp.max(scores.rounded(), axis=2, keepdims=True))
        shrink, weights = jnp.exp((before - larger) * scale), jnp.exp(scores.above(larger[:, :, :1]) * scale)
        # The end of a tile may lie outside the cache, where anything may stand: 0 times infinity is no number.
        inside = step * tile + lax.broadcasted_iota(jnp.int32, value_ref.shape, 2 if across else 1) < filled
        value = jnp.where(inside, value_ref[...], 0)
        highest[...] = larger
        total[...] = total[...] * shrink + jnp.sum(weights, axis=2, keepdims=True)
        sums[...] = sums[...] * shrink[:, :, :1] + _products(weights.astype(value.dtype), value, 2 if across else 1)

    @pl.when(step == pl.num_programs(2) - 1)
    def _():
        sums_ref[...], total_ref[...], highest_ref[...] = sums[...], total[...], highest[...]


def _products(left, right, over: int):
    """One matrix product per head, over the last dimension and that one, in float32; exact where the operands are."""
    precision = lax.Precision.HIGHEST if left.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(
        left, right, (((2,), (over,)), ((0,), (0,))), precision=precision, preferred_element_type=jnp.float32
    )


def _heads(groups: int, bytes_each: int) -> int:
    """Heads of one step: enough that its work outweighs its start."""
    most = max(1, tuning.TPU_DECODE.step_bytes // bytes_each)
    return max(count for count in range(1, groups + 1) if groups % count == 0 and count <= most)


def _tile_to_read(step, filled, tile: int):
    return jnp.minimum(step, lax.div(jnp.maximum(filled - 1, 0), tile))
