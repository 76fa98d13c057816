"""How a cache lies in memory: as the compiler stores an array of its shape, wherever it is read or written.

L layers, B batch, G key/value heads, C capacity, E head dimension.
"""

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jaxtyping import Array, Float

_LANES = 128


def across_lanes(head_dim: int) -> bool:
    """Whether a TPU stores the capacity along its lanes, which a head of fewer than 128 numbers would not fill."""
    return head_dim % _LANES != 0


def as_stored(x: Float[Array, "*L B G C E"]) -> Float[Array, "*L B G C E"]:
    """`x`, held in the order that caches have as arguments of a program.

    Left to itself, the compiler picks what suits one use, the write of a token or the sum over a dimension, and copies
    the whole cache for every token.
    """
    rows = tuple(range(x.ndim))
    by_row = Layout(rows)
    if not across_lanes(x.shape[-1]):
        return with_layout_constraint(x, by_row)
    by_column = Layout((*rows[:-2], rows[-1], rows[-2]))
    return jax.lax.platform_dependent(
        x,
        tpu=lambda x: with_layout_constraint(x, by_column),
        default=lambda x: with_layout_constraint(x, by_row),
    )
