"""Decode attention on GPUs, by Pallas-Triton: the keys of one head are read by several programs (split-K).

B batch, G key/value heads, R queries per group, P parts, L layers, C capacity of one block, E head dimension.

The cache is passed whole and addressed by layer, sample and head, so that nothing is sliced out of it. How many tiles
of keys a program walks over follows from the sample's length: beyond it nothing is read.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Array, Float, Int

from dynllava_jax.kernels import tuning
from dynllava_jax.kernels.decode_join import NOTHING, Partial, score_scale
from dynllava_jax.kernels.triton import fitting, triton_call


def read(
    query: Float[Array, "B G R E"],
    keys: Float[Array, "L B G C E"],
    values: Float[Array, "L B G C E"],
    layer: Int[Array, ""],
    filled: Int[Array, " B"],
    *,
    interpret: bool = False,
) -> Partial:
    """See `decode_join.Read`."""
    batch, groups, ratio, size = query.shape
    columns = fitting(size)
    sizes = tuning.GPU_DECODE
    tile = min(sizes.keys, sizes.tile_bytes // (columns * keys.dtype.itemsize))
    parts = _parts(batch * groups, pl.cdiv(keys.shape[3], tile))
    kernel = functools.partial(_kernel, rows=fitting(ratio), columns=columns, tile=tile, parts=parts)
    return Partial(
        *triton_call(
            kernel,
            warps=sizes.warps,
            stages=sizes.stages,
            interpret=interpret,
            grid=(batch, groups, parts),
            out_shape=(
                jax.ShapeDtypeStruct((batch, groups, parts, ratio, size), jnp.float32),
                jax.ShapeDtypeStruct((batch, groups, parts, ratio), jnp.float32),
            ),
            name="decode_attention",
        )(layer[None], filled, query, keys, values)
    )


def _kernel(layer_ref, filled_ref, query_ref, key_ref, value_ref, out_ref, sum_ref, *, rows, columns, tile, parts):
    sample, group, part = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    ratio, size = query_ref.shape[2:]
    layer, filled = layer_ref[0], filled_ref[sample]
    row, column = jnp.arange(rows), jnp.arange(columns)
    real = (row < ratio)[:, None] & (column < size)[None]
    query = pltriton.load(query_ref.at[sample, group, *_cells(row, column)], mask=real, other=0.0)
    exact = query.dtype == jnp.float32
    scale = score_scale(size) * math.log2(math.e)

    def step(index, carry):
        highest, total, sums = carry
        position = index * tile + jnp.arange(tile)
        held = position < filled
        at = (layer, sample, group, *_cells(position, column))
        mask = held[:, None] & (column < size)[None]
        key = pltriton.load(key_ref.at[at], mask=mask, other=0.0)
        value = pltriton.load(value_ref.at[at], mask=mask, other=0.0)
        scores = jnp.where(held[None], pltriton.dot(query, key.T, allow_tf32=not exact) * scale, NOTHING)
        larger = jnp.maximum(highest, jnp.max(scores, axis=1))
        shrink, weights = jnp.exp2(highest - larger), jnp.exp2(scores - larger[:, None])
        added = pltriton.dot(weights.astype(value.dtype), value, allow_tf32=not exact)
        return larger, total * shrink + jnp.sum(weights, axis=1), sums * shrink[:, None] + added

    start, stop = _share(filled, part, tile, parts)
    nothing = (jnp.full((rows,), NOTHING), jnp.zeros((rows,)), jnp.zeros((rows, columns)))
    highest, total, sums = lax.fori_loop(start, stop, step, nothing)
    empty = total == 0.0
    total = jnp.where(empty, 1.0, total)
    log_sum = jnp.where(empty, NOTHING, highest * math.log(2) + jnp.log(total))
    pltriton.store(out_ref.at[sample, group, part, *_cells(row, column)], sums / total[:, None], mask=real)
    pltriton.store(sum_ref.at[sample, group, part, row], log_sum, mask=row < ratio)


def _cells(row, column):
    """Indices of a tile, element by element: a slice may not reach beyond the array, even where it is masked."""
    shape = (row.shape[0], column.shape[0])
    return jnp.broadcast_to(row[:, None], shape), jnp.broadcast_to(column[None], shape)


def _parts(heads: int, tiles: int) -> int:
    """Programs that share the keys of one head of one sample."""
    return max(1, min(tiles, tuning.GPU_DECODE.programs // heads))


def _share(filled, part, tile: int, parts: int):
    """First and last tile but one of a part: all parts of a sample have the same work, however long it is."""
    tiles = lax.div(filled + (tile - 1), tile)
    each = lax.div(tiles + (parts - 1), parts)
    return jnp.minimum(part * each, tiles), jnp.minimum((part + 1) * each, tiles)
