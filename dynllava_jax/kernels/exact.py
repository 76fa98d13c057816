"""Products of float32 numbers, right to the last bit but one.

A score is a sum of many products, every addition rounds it, and a key's weight is off by as much as its score: where
scores reach 50, plain products put the output off by five times what rounding each finished score once does. Here both
sides are split into the leading bits of each number, whose products add up without any rounding, and the rest, which
is a hundredth as large, and so are its errors (the splitting of Ozaki and others, 2012). It takes three products.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

Tile = Any
"""An array inside a kernel, of any rank."""

_LEADING = 7
"""Bits of a leading part, at least; at most 8.4. Twice as many and the sum over 128 products fit a float32's 24."""


def exact(products: Callable[[Tile, Tile], Tile], left: Tile, right: Tile, over_left: int, over_right: int) -> Tile:
    """`products(left, right)`, which sums over those axes, of at most 128; as it is where they are not float32."""
    if left.dtype != jnp.float32:
        return products(left, right)
    most, other = _leading(left, over_left), _leading(right, over_right)
    rest = products(left - most, right) + products(most, right - other)
    return products(most, other) + rest


def _leading(x: Tile, over: int) -> Tile:
    """Multiples of one power of two per row of a sum: to add a large number and take it away again rounds to them."""
    large = jnp.max(jnp.abs(x), axis=over, keepdims=True) * (1.5 * 2.0 ** (23 - _LEADING))
    return (x + large) - large
