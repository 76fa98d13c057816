"""Sums of products of float32 numbers, right to the last bit but one, and differences of them, which are righter still.

A score is a sum of many products, every addition rounds it, and a key's weight is off by as much as its score: where
scores reach 50, plain products put the output off by five times what rounding each finished score once does. Here both
sides are split into the leading bits of each number, whose products add up without any rounding, and the rest, which
is a hundredth as large, and so are its errors (the splitting of Ozaki and others, 2012). It takes three products.

Even a score that is rounded once is off by what its size makes of one rounding. What counts is how far it lies below
its row's largest, and that is a small number: the two parts stay apart until that one has been taken away.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

Tile = Any
"""An array inside a kernel, of any rank."""

_LEADING = 7
"""Bits of a leading part, at least; at most 8.4. Twice as many and the sum over 128 products fit a float32's 24."""


class Sums(NamedTuple):
    """A tile of sums in two parts.

    Attributes:
        leading: without any rounding.
        rest: what is to be added; None where `leading` is all there is.
    """

    leading: Tile
    rest: Tile

    def rounded(self) -> Tile:
        """The sums, each rounded once more."""
        return self.leading if self.rest is None else self.leading + self.rest

    def above(self, reference: Tile) -> Tile:
        """How far they lie above it: exact but for the rest's own errors where that is little."""
        apart = self.leading - reference
        return apart if self.rest is None else apart + self.rest

    def where(self, real: Tile, otherwise: float) -> "Sums":
        """That number where they are not real, whatever stands there."""
        rest = None if self.rest is None else jnp.where(real, self.rest, 0.0)
        return Sums(jnp.where(real, self.leading, otherwise), rest)

    def plus(self, other: "Sums") -> "Sums":
        """Both, of float32 numbers: what the sum of the leading parts loses goes to the rest (Knuth's TwoSum)."""
        total = self.leading + other.leading
        added = total - self.leading
        lost = (self.leading - (total - added)) + (other.leading - added)
        return Sums(total, self.rest + other.rest + lost)


def exact(products: Callable[[Tile, Tile], Tile], left: Tile, right: Tile, over_left: int, over_right: int) -> Sums:
    """`products(left, right)`, which sums over those axes, of at most 128; as it is where they are not float32."""
    if left.dtype != jnp.float32:
        return Sums(products(left, right), None)
    most, other = _leading(left, over_left), _leading(right, over_right)
    rest = products(left - most, right) + products(most, right - other)
    return Sums(products(most, other), rest)


def _leading(x: Tile, over: int) -> Tile:
    """Multiples of one power of two per row of a sum: to add a large number and take it away again rounds to them."""
    large = jnp.max(jnp.abs(x), axis=over, keepdims=True) * (1.5 * 2.0 ** (23 - _LEADING))
    return (x + large) - large
