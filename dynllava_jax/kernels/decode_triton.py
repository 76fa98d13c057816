"""Decode attention on GPUs, by Pallas-Triton: the keys of one head are read by several programs (split-K).

B batch, G key/value heads, R queries per group, P parts, L layers, C capacity of one block, E head dimension.

The cache is passed whole and addressed by layer, sample and head, so that nothing is sliced out of it. How many tiles
of keys a program walks over follows from the sample's length: beyond it nothing is read.
"""

import functools
import itertools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Array, Float, Int

from dynllava_jax.kernels import tuning
from dynllava_jax.kernels.decode_join import NOTHING, DecodeKernel, Partial, score_scale
from dynllava_jax.kernels.exact import exact
from dynllava_jax.kernels.target import target
from dynllava_jax.kernels.triton import cells, dot, fitting, row_products, triton_call


def kernel(interpret: bool = False) -> DecodeKernel:
    """How GPUs read a cache; one kernel for each of its blocks, and one that brings their parts together."""
    return DecodeKernel(functools.partial(_read, interpret=interpret), functools.partial(_join, interpret=interpret))


def _read(
    query: Float[Array, "B G R E"],
    keys: Float[Array, "L B G C E"],
    values: Float[Array, "L B G C E"],
    layer: Int[Array, ""],
    lengths: Int[Array, " B"],
    start: int,
    *,
    interpret: bool,
) -> Partial:
    """See `decode_join.Read`.

    Raises:
        NotImplementedError: a GPU that the kernels were never compiled for.
    """
    batch, groups, ratio, size = query.shape
    if not interpret:
        tuning.gpu_blocks(target(), size, keys.dtype.itemsize)
    columns = fitting(size)
    sizes = tuning.GPU_DECODE[keys.dtype.itemsize]
    tile = min(sizes.keys, sizes.tile_bytes // (columns * keys.dtype.itemsize))
    parts = _parts(batch * groups, pl.cdiv(keys.shape[3], tile), sizes)
    return Partial(
        *triton_call(
            functools.partial(_read_kernel, rows=fitting(ratio), columns=columns, tile=tile, parts=parts, start=start),
            warps=sizes.warps,
            stages=sizes.stages,
            interpret=interpret,
            grid=(batch, groups, parts),
            out_shape=(
                jax.ShapeDtypeStruct((batch, groups, parts, ratio, size), jnp.float32),
                *[jax.ShapeDtypeStruct((batch, groups, parts, ratio), jnp.float32)] * 2,
            ),
            name="decode_attention",
        )(layer[None], lengths, query, keys, values)
    )


def _read_kernel(
    layer_ref,
    lengths_ref,
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
    start,
):
    sample, group, part = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    ratio, size = query_ref.shape[2:]
    layer, filled = layer_ref[0], jnp.clip(lengths_ref[sample] - start, 0, key_ref.shape[3])
    row, column = jnp.arange(rows), jnp.arange(columns)

    def load(ref, index, row, real, part):
        column = part.start + jnp.arange(part.size)
        mask = real[:, None] & (column < size)[None]
        return pltriton.load(ref.at[(*index, *cells(row, column))], mask=mask, other=0.0)

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
        scores = row_products(query, key, asked, keys).where(held[None], NOTHING)
        larger = jnp.maximum(highest, jnp.max(scores.rounded(), axis=1))
        shrink, weights = jnp.exp2((highest - larger) * scale), jnp.exp2(scores.above(larger[:, None]) * scale)
        added = dot(weights.astype(value.dtype), value)
        return larger, total * shrink + jnp.sum(weights, axis=1), sums * shrink[:, None] + added

    first, last = _share(filled, part, tile, parts)
    nothing = (jnp.full((rows,), NOTHING), jnp.zeros((rows,)), jnp.zeros((rows, columns)))
    highest, total, sums = lax.fori_loop(first, last, step, nothing)
    real = (row < ratio)[:, None] & (column < size)[None]
    pltriton.store(sums_ref.at[sample, group, part, *cells(row, column)], sums, mask=real)
    for ref, found in ((total_ref, total), (highest_ref, highest)):
        pltriton.store(ref.at[sample, group, part, row], found, mask=row < ratio)


def _join(
    query: Float[Array, "B G R E"],
    key: Float[Array, "B G 1 E"],
    value: Float[Array, "B G 1 E"],
    parts: Sequence[Partial],
    *,
    interpret: bool,
) -> Float[Array, "B G R E"]:
    """See `decode_join.Join`: what XLA would do in ten kernels, each of which takes as long to start as to run."""
    size = query.shape[3]
    return triton_call(
        functools.partial(_join_kernel, columns=pl.next_power_of_2(size)),
        warps=4,
        stages=1,
        interpret=interpret,
        grid=query.shape[:3],
        out_shape=jax.ShapeDtypeStruct(query.shape, query.dtype),
        name="decode_attention_join",
    )(query, key, value, *itertools.chain.from_iterable(parts))


def _join_kernel(query_ref, key_ref, value_ref, *refs, columns):
    *part_refs, out_ref = refs
    sample, group, row = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    size = query_ref.shape[3]
    column = jnp.arange(columns)
    scale = score_scale(size)

    def load(ref, *index):
        found = pltriton.load(ref.at[(*index, column)], mask=column < size, other=0.0)
        return found.astype(jnp.float32)[None]

    asked, own = load(query_ref, sample, group, row), load(key_ref, sample, group, 0)
    own = exact(lambda left, right: jnp.sum(left * right, axis=1), asked, own, 1, 1)
    blocks = []
    for at in range(0, len(part_refs), 3):
        sums, total, highest = part_refs[at : at + 3]
        part = jnp.arange(pl.next_power_of_2(highest.shape[2]))
        real = part < highest.shape[2]
        blocks.append(
            Partial(
                pltriton.load(
                    sums.at[(sample, group, cells(part, column)[0], row, cells(part, column)[1])],
                    mask=real[:, None] & (column < size)[None],
                    other=0.0,
                ),
                pltriton.load(total.at[sample, group, part, row], mask=real, other=0.0),
                pltriton.load(highest.at[sample, group, part, row], mask=real, other=NOTHING),
            )
        )
    top = functools.reduce(jnp.maximum, [jnp.max(block.highest, keepdims=True) for block in blocks], own.rounded())
    weight = jnp.exp(own.above(top) * scale)
    total, joined = weight, load(value_ref, sample, group, 0) * weight[:, None]
    for block in blocks:
        weights = jnp.exp((block.highest - top) * scale)
        total = total + jnp.sum(block.total * weights, keepdims=True)
        joined = joined + jnp.sum(block.sums * weights[:, None], axis=0)[None]
    joined = (joined / total[:, None])[0]
    pltriton.store(out_ref.at[sample, group, row, column], joined.astype(out_ref.dtype), mask=column < size)


def _parts(heads: int, tiles: int, sizes: tuning.GpuDecode) -> int:
    """Programs that share the keys of one head of one sample."""
    return max(1, min(tiles, sizes.programs // heads, sizes.parts))


def _share(filled, part, tile: int, parts: int):
    """A part's first tile, and the one after its last: all parts of a sample have the same work, however long it is."""
    tiles = lax.div(filled + (tile - 1), tile)
    each = lax.div(tiles + (parts - 1), parts)
    return jnp.minimum(part * each, tiles), jnp.minimum((part + 1) * each, tiles)
