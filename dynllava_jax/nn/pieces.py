"""Weights that a CPU multiplies by where they lie, a piece at a time.

XLA for CPUs cuts a layer's weights out of their stack, writes them down once more in float32 if they are narrower, and
multiplies then: for a single token that is three to five times the traffic. A piece stays in the processor's own cache.

L layers, *B leading axes, I input features, O output features.
"""

import dataclasses
import math
from types import EllipsisType
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

Layers = TypeVar("Layers", bound=nnx.Module)

FEW_TOKENS = 128
"""Up to so many it is faster; beyond, the sum that every piece is added to has left the cache when the next comes."""
_ROWS = 256
"""Of a piece. Of 8 to 256 rows of 4096 and 11008 numbers these were the fastest."""
_LEAST = 2**20
"""Numbers of a matrix that is worth it; one of half as many stays in the cache as a whole."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Pieces:
    """A layer's matrix in its stack. It stands where a kernel's array would.

    Attributes:
        stack: every layer's.
        layer: whose.
    """

    stack: Float[Array, "L I O"]
    layer: Int[Array, ""]

    def __getitem__(self, whole: EllipsisType) -> "Pieces":
        """Itself, as `[...]` gives what a parameter holds."""
        return self

    def multiply(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        """`x @ stack[layer]` of weights in the dtype of `x`, added up in float32."""
        _, inputs, outputs = self.stack.shape

        def add(first: int | Int[Array, ""], rows: int, y: Float[Array, "*B O"]) -> Float[Array, "*B O"]:
            piece = jax.lax.dynamic_slice(self.stack, (self.layer, first, 0), (1, rows, outputs))[0].astype(x.dtype)
            part = jax.lax.dynamic_slice_in_dim(x, first, rows, axis=-1)
            return y + jnp.einsum("...i,io->...o", part.astype(jnp.float32), piece.astype(jnp.float32))

        most = min(_ROWS, inputs)
        pieces, rest = divmod(inputs, most)
        y = jnp.zeros((*x.shape[:-1], outputs), jnp.float32)
        y = jax.lax.fori_loop(0, pieces, lambda n, y: add(n * most, most, y), y)
        return (add(pieces * most, rest, y) if rest else y).astype(x.dtype)


def layer_in_pieces(layers: Layers, layer: Int[Array, ""]) -> Layers:
    """One layer of a stack: its large kernels in pieces, everything else cut out."""

    def cut(path: jax.tree_util.KeyPath, stack: Array) -> Array | Pieces:
        if jax.tree_util.GetAttrKey("kernel") in path and math.prod(stack.shape[1:]) >= _LEAST:
            return Pieces(stack, layer)
        return jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False)

    return jax.tree_util.tree_map_with_path(cut, layers)


def kernel_in_pieces(kernel: Float[Array, "I O"]) -> Pieces | Float[Array, "I O"]:
    """A matrix that is in no stack: in pieces where it is large, and would be written down in float32 first."""
    if kernel.size < _LEAST or kernel.dtype == jnp.float32:
        return kernel
    return Pieces(kernel[None], jnp.zeros((), jnp.int32))
