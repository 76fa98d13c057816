"""The one place that asks Pallas for its Triton backend.

By default Pallas compiles for GPUs with Mosaic, which under JAX 0.10 aborts the whole process on an A100. Triton serves
every GPU from the A100 on, but is deprecated from JAX 0.11 on; the versions that `pyproject.toml` allows all have it.
"""

import struct
import warnings
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

from dynllava_jax.kernels import tuning
from dynllava_jax.kernels.exact import Sums, exact

SMALLEST = 16
"""Rows and columns that a tensor core's product needs."""


def fitting(size: int) -> int:
    """The size of a tile's dimension that holds `size` rows or columns of a product."""
    return max(SMALLEST, pl.next_power_of_2(size))


def triton_call(
    kernel: Callable[..., None], *, warps: int, stages: int, interpret: bool = False, **options: Any
) -> Callable[..., Any]:
    """`pl.pallas_call` for GPUs.

    Args:
        kernel: its body; every array in it must have a power of two of elements along each dimension.
        warps: of one program.
        stages: of its pipelined loops.
        interpret: run it as plain JAX, on any platform.
        options: of `pl.pallas_call`.
    """
    # Given when a program is lowered, which is not here: the filter has to stay.
    warnings.filterwarnings("ignore", "The Pallas Triton backend is deprecated", DeprecationWarning)
    params = pltriton.CompilerParams(num_warps=warps, num_stages=stages)
    return pl.pallas_call(kernel, compiler_params=params, interpret=interpret, **options)


def dot(left: Any, right: Any) -> Any:
    """A matrix product inside a kernel, in float32; of float32 numbers by float32 products, not by shorter ones."""
    return pltriton.dot(left, right, allow_tf32=left.dtype != jnp.float32)


def quick_exp2(x: Any, scale: float, less: Any, *, interpret: bool) -> Any:
    """`exp2(x * scale - less)` of float32 numbers in two instructions, with results below 2**-126 as 0.

    Caring for those takes twice as long, and product and difference would be two instructions.

    Args:
        x: a tile.
        scale: of it.
        less: broadcasts against it.
        interpret: by plain JAX, which cannot write instructions.
    """
    if interpret:
        return jnp.exp2(x * scale - less)
    bits = struct.unpack("<I", struct.pack("<f", scale))[0]
    (found,) = pltriton.elementwise_inline_asm(
        f"{{ .reg .f32 t; fma.rn.f32 t, $1, 0f{bits:08X}, $2; ex2.approx.ftz.f32 $0, t; }}",
        args=[x, jnp.broadcast_to(-less, x.shape)],
        constraints="=f,f,f",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, jnp.float32)],
    )
    return found


def cells(row: Any, column: Any) -> tuple[Any, Any]:
    """Indices of a tile, element by element: a slice may not reach beyond the array, even where it is masked."""
    shape = (row.shape[0], column.shape[0])
    return jnp.broadcast_to(row[:, None], shape), jnp.broadcast_to(column[None], shape)


def row_products(left: Any, right: Any, left_part: Callable[[Any], Any], right_part: Callable[[Any], Any]) -> Sums:
    """Products of the rows of two tiles, in float32; of float32 numbers exact ones (see `exact`).

    Those take too many registers for whole rows: some columns at a time are read once more.

    Args:
        left, right: the tiles.
        left_part, right_part: read their columns `pl.ds(start, size)`.
    """
    if left.dtype != jnp.float32:
        return Sums(dot(left, right.T), None)
    size = min(left.shape[1], tuning.GPU_EXACT_COLUMNS)

    def part(index: Any) -> Sums:
        at = pl.ds(index * size, size)
        return exact(lambda one, other: dot(one, other.T), left_part(at), right_part(at), 1, 1)

    return lax.fori_loop(1, left.shape[1] // size, lambda index, found: found.plus(part(index)), part(0))
