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
from dynllava_jax.kernels.target import target
from dynllava_jax.kernels.triton import dot, fitting, row_products, triton_call


def read(
    query: Float[Array, "B G R E"],
    keys: Float[Array, "L B G C E"],
    values: Float[Array, "L B G C E"],
    layer: Int[Array, ""],
    filled: Int[Array, " B"],
    *,
    interpret: bool = False,
) -> Partial:
    """See `decode_join.Read`.

    Raises:
        NotImplementedError: a GPU that the kernels were never compiled for.
    """
    batch, groups, ratio, size = query.shape
    if not interpret:
        tuning.gpu_blocks(target(), size, keys.dtype.itemsize)
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
                *[jax.ShapeDtypeStruct((batch, groups, parts, ratio), jnp.float32)] * 2,
            ),
            name="decode_attention",
        )(layer[None], filled, query, keys, values)
    )


def _kernel(
    layer_ref,
    filled_ref,
    query_ref,
    key_ref,
    value_ref,
    sums_ref,
    total_ref,
    highest_ref,
    *,
    rows,
    columns,
    tile,
    parts,
):
    sample, group, part = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    ratio, size = query_ref.shape[2:]
    layer, filled = layer_ref[0], filled_ref[sample]
    row, column = jnp.arange(rows), jnp.arange(columns)

    def load(ref, index, row, real, part):
        column = part.start + jnp.arange(part.size)
        mask = real[:, None] & (column < size)[None]
        return pltriton.load(ref.at[(*index, *_cells(row, column))], mask=mask, other=0.0)

    whole = pl.ds(0, columns)
    asked = functools.partial(load, query_ref, (sample, group), row, row < ratio)
    query = asked(whole)
    scale = score_scale(size) * math.log2(math.e)

    def step(index, carry):
        highest, total, sums = carry
        position = index * tile + jnp.arange(tile)
        held = position < filled
        keys, values = (
            functools.partial(load, ref, (layer, sample, group), position, held) for ref in (key_ref, value_ref)
        )
        key, value = keys(whole), values(whole)
        products = jnp.where(held[None], row_products(query, key, asked, keys), NOTHING)
        larger = jnp.maximum(highest, jnp.max(products, axis=1))
        shrink, weights = jnp.exp2((highest - larger) * scale), jnp.exp2((products - larger[:, None]) * scale)
        added = dot(weights.astype(value.dtype), value)
        return larger, total * shrink + jnp.sum(weights, axis=1), sums * shrink[:, None] + added

    start, stop = _share(filled, part, tile, parts)
    nothing = (jnp.full((rows,), NOTHING), jnp.zeros((rows,)), jnp.zeros((rows, columns)))
    highest, total, sums = lax.fori_loop(start, stop, step, nothing)
    real = (row < ratio)[:, None] & (column < size)[None]
    pltriton.store(sums_ref.at[sample, group, part, *_cells(row, column)], sums, mask=real)
    for ref, found in ((total_ref, total), (highest_ref, highest)):
        pltriton.store(ref.at[sample, group, part, row], found, mask=row < ratio)


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
