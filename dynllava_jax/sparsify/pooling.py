"""2-D pooling: what down-sampling the grid of image tokens gives at the same token count.

N image tokens (a square grid, row by row), K cells.
"""

import math
from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Float, Int

from dynllava_jax.errors import InputError
from dynllava_jax.sparsify.selector import ImageView, Merged, SelectorContext


class PoolImage(nnx.Module):
    """K averages over rectangles of the grid, by the rule of adaptive average pooling: output i of `count` covers the
    inputs floor(i·size/count) … ceil((i+1)·size/count) − 1 (PyTorch's `AdaptiveAvgPool2d`).

    K = side² is that pooling to side×side (of 576 tokens, K = 144 averages 2×2); of another K the rows have one cell
    more or less. In training it serves before the decoder only, since there nothing leaves the sequence.
    """

    wants_attention: ClassVar[bool] = False

    def __init__(self, rngs: nnx.Rngs, context: SelectorContext):
        del rngs
        if math.isqrt(context.count) ** 2 != context.count:
            raise InputError(f"{context.place}_selector pool needs a square grid of image tokens, not {context.count}.")

    def __call__(self, view: ImageView) -> Merged:
        weights, index = cells(view.features.shape[2], view.kept)
        tokens = jnp.einsum("kn,bmnc->bmkc", weights, view.features.astype(jnp.float32))
        index = jnp.broadcast_to(index, (*view.features.shape[:2], view.kept))
        return Merged(tokens.astype(view.features.dtype), index)


def cells(count: int, kept: int) -> tuple[Float[np.ndarray, "K N"], Int[np.ndarray, " K"]]:
    """Each cell's weights over the `count` tokens, and the token in its middle, ascending."""
    side, rows = math.isqrt(count), max(1, round(math.sqrt(kept)))
    weights, middles = [], []
    for row in range(rows):
        top, bottom = _span(row, rows, side)
        columns = kept * (row + 1) // rows - kept * row // rows
        for column in range(columns):
            left, right = _span(column, columns, side)
            cell = np.zeros((side, side), np.float32)
            cell[top:bottom, left:right] = 1 / ((bottom - top) * (right - left))
            weights.append(cell.reshape(-1))
            middles.append((top + bottom - 1) // 2 * side + (left + right - 1) // 2)
    return np.stack(weights), np.array(middles, np.int32)


def _span(place: int, count: int, size: int) -> tuple[int, int]:
    return place * size // count, -(-(place + 1) * size // count)
