"""The products of one decoder layer for a few rows, on GPUs, by Pallas-Triton: three kernels in place of a dozen.

B rows, L layers of one stack, D hidden size, H query heads, G key/value heads, E head dimension, F hidden features of
the MLP, I inputs and O outputs of one product.

Weights are passed as whole stacks and addressed by layer, so that none is copied. A program reads some columns of them
from top to bottom, and every program the rows, which are few. What a row's norm divides it by is one number: the sum of
squares is taken on the way, and the product divided in the end.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton
from jaxtyping import Array, Float, Int

from dynllava_jax.kernels import tuning
from dynllava_jax.kernels.limits import check
from dynllava_jax.kernels.target import target
from dynllava_jax.kernels.triton import cells, dot, fitting, triton_call

_MOST_ROWS = 16
_SMALLEST = 16
"""Columns that a tensor core's product needs; half a head has a multiple of them."""


class Norm(NamedTuple):
    """The RMSNorm before a product: every layer's scale, and what is added to the mean square."""

    scale: Float[Array, "L D"]
    eps: float


@dataclasses.dataclass(frozen=True)
class Products:
    """The three kernels; `interpret` runs them as plain JAX, on any platform."""

    interpret: bool = False

    def check(self, rows: int, dtype: jnp.dtype, head_dim: int) -> None:
        """Raises NotImplementedError for rows, a dtype, head dimension or GPU that they do not serve."""
        check(dtype, head_dim)
        if rows > _MOST_ROWS:
            raise NotImplementedError(f"it serves up to {_MOST_ROWS} rows, not {rows}")
        if self.interpret:
            return
        tuning.gpu_blocks(target(), head_dim, dtype.itemsize)
        if head_dim % (2 * _SMALLEST):
            raise NotImplementedError(
                f"it serves head dimensions that are multiples of {2 * _SMALLEST}, not {head_dim}"
            )
        if dtype != jnp.bfloat16:
            raise NotImplementedError(f"it multiplies bfloat16 on tensor cores, not {dtype.name}")

    def rotated(
        self,
        x: Float[Array, "B D"],
        norm: Norm,
        weights: Sequence[Float[Array, "L D _"]],
        cos: Float[Array, "B E"],
        sin: Float[Array, "B E"],
        layer: Int[Array, ""],
    ) -> Sequence[Float[Array, "B _"]]:
        """Rotated queries, rotated keys, and values: of the normed rows by the three weights."""
        walk = tuning.GPU_PRODUCTS_OF_TWO
        half = cos.shape[1] // 2
        tile = min(walk.columns, half & -half)
        outputs = [weight.shape[2] for weight in weights]
        heads = tuple(size // (2 * half) for size in outputs)
        body = functools.partial(_rotated, heads=heads, half=half, eps=norm.eps)
        return self._call(body, x, walk, tile, (sum(heads), half // tile), outputs, "rotated")(
            layer[None], x, norm.scale, cos, sin, *weights
        )

    def gated(
        self,
        x: Float[Array, "B D"],
        norm: Norm,
        gate: Float[Array, "L D F"],
        up: Float[Array, "L D F"],
        layer: Int[Array, ""],
    ) -> Float[Array, "B F"]:
        """silu(gate) · up of the normed rows."""
        walk, size = tuning.GPU_PRODUCTS_OF_TWO, gate.shape[2]
        body, programs = functools.partial(_gated, eps=norm.eps), (pl.cdiv(size, walk.columns),)
        (out,) = self._call(body, x, walk, walk.columns, programs, [size], "gated")(
            layer[None], x, norm.scale, gate, up
        )
        return out

    def added(
        self, x: Float[Array, "B O"], hidden: Float[Array, "B I"], weight: Float[Array, "L I O"], layer: Int[Array, ""]
    ) -> Float[Array, "B O"]:
        """Adds hidden @ weight to `x`, rounded once."""
        walk, size = tuning.GPU_PRODUCTS_OF_ONE, weight.shape[2]
        (out,) = self._call(_added, x, walk, walk.columns, (pl.cdiv(size, walk.columns),), [size], "added")(
            layer[None], x, hidden, weight
        )
        return out

    def _call(
        self,
        body: Callable[..., None],
        x: Float[Array, "B D"],
        walk: tuning.ProductWalk,
        tile: int,
        programs: tuple[int, ...],
        outputs: Sequence[int],
        name: str,
    ) -> Callable[..., Any]:
        return triton_call(
            functools.partial(body, rows=fitting(x.shape[0]), tile=tile, step=walk.step),
            warps=walk.warps,
            stages=walk.stages,
            interpret=self.interpret,
            grid=programs,
            out_shape=[jax.ShapeDtypeStruct((x.shape[0], size), x.dtype) for size in outputs],
            name=f"decode_{name}",
        )


def _rotated(layer_ref, x_ref, scale_ref, cos_ref, sin_ref, *refs, heads, half, eps, rows, tile, step):
    row, place = jnp.arange(rows), pl.program_id(1) * tile + jnp.arange(tile)
    first = 0
    for turned, count, weight_ref, out_ref in zip((True, True, False), heads, refs[:3], refs[3:], strict=True):
        head = pl.program_id(0) - first

        def one(head=head, turned=turned, weight_ref=weight_ref, out_ref=out_ref):
            columns = [head * 2 * half + place + side for side in (0, half)]
            pair = _products(x_ref, layer_ref[0], [(weight_ref, c) for c in columns], rows, step, (scale_ref, eps))
            if turned:
                left, right = (_rounded(part, out_ref) for part in pair)
                cos, sin = ([_load(ref, row, place + side) for side in (0, half)] for ref in (cos_ref, sin_ref))
                pair = left * cos[0] - right * sin[0], right * cos[1] + left * sin[1]
            for part, column in zip(pair, columns, strict=True):
                _store(out_ref, row, column, part)

        pl.when((head >= 0) & (head < count))(one)
        first += count


def _gated(layer_ref, x_ref, scale_ref, gate_ref, up_ref, out_ref, *, eps, rows, tile, step):
    column = pl.program_id(0) * tile + jnp.arange(tile)
    both = [(gate_ref, column), (up_ref, column)]
    gate, up = (_rounded(part, out_ref) for part in _products(x_ref, layer_ref[0], both, rows, step, (scale_ref, eps)))
    _store(out_ref, jnp.arange(rows), column, gate / (1.0 + jnp.exp(-gate)) * up)


def _added(layer_ref, x_ref, hidden_ref, weight_ref, out_ref, *, rows, tile, step):
    row, column = jnp.arange(rows), pl.program_id(0) * tile + jnp.arange(tile)
    (found,) = _products(hidden_ref, layer_ref[0], [(weight_ref, column)], rows, step)
    _store(out_ref, row, column, _load(x_ref, row, column).astype(jnp.float32) + found)


def _products(x_ref, layer, tiles, rows, step, norm=None):
    """The rows by some columns of each of some weights, in float32; with `norm`, (scales, eps), of the normed rows."""
    row, count = jnp.arange(rows), x_ref.shape[1]

    def body(index, carry):
        squares, *sums = carry
        place = index * step + jnp.arange(step)
        x = _load(x_ref, row, place)
        if norm is not None:
            wide, scale = x.astype(jnp.float32), _load(norm[0], layer[None], place).astype(jnp.float32)
            squares, x = squares + wide * wide, (wide * scale).astype(x.dtype)
        weights = [_load(ref, place, column, layer) for ref, column in tiles]
        return squares, *(total + dot(x, weight) for total, weight in zip(sums, weights, strict=True))

    zeros = [jnp.zeros((rows, column.shape[0])) for _, column in tiles]
    squares, *sums = lax.fori_loop(0, pl.cdiv(count, step), body, (jnp.zeros((rows, step)), *zeros))
    if norm is None:
        return sums
    inverse = lax.rsqrt(jnp.sum(squares, axis=1) / count + norm[1])
    return [total * inverse[:, None] for total in sums]


def _load(ref, row, column, *index):
    inside = _inside(ref, row, column)
    return pltriton.load(ref.at[(*index, *cells(row, column))], mask=inside, other=None if inside is None else 0.0)


def _store(ref, row, column, x):
    pltriton.store(ref.at[cells(row, column)], x.astype(ref.dtype), mask=_inside(ref, row, column))


def _inside(ref, row, column):
    """Which cells the array has; None where it is known to have all, because whole tiles make it up."""
    shape = (row.shape[0], column.shape[0])
    limits = ((row[:, None], ref.shape[-2]), (column[None], ref.shape[-1]))
    known = [jnp.broadcast_to(at < size, shape) for at, size in limits if size % at.size]
    return functools.reduce(jnp.logical_and, known) if known else None


def _rounded(x, ref):
    """As it would be if it had been stored in between."""
    return x.astype(ref.dtype).astype(jnp.float32)
