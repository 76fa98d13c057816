"""The one place that asks Pallas for its Triton backend.

By default Pallas compiles for GPUs with Mosaic, which under JAX 0.10 aborts the whole process on an A100. Triton serves
every GPU from the A100 on, but is deprecated from JAX 0.11 on; the versions that `pyproject.toml` allows all have it.
"""

import warnings
from collections.abc import Callable
from typing import Any

from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as pltriton

_SMALLEST = 16
"""Rows and columns that a tensor core's product needs."""


def fitting(size: int) -> int:
    """The size of a tile's dimension that holds `size` rows or columns of a product."""
    return max(_SMALLEST, pl.next_power_of_2(size))


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
