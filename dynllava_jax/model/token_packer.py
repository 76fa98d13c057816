"""TokenPacker: one query per cell of patches gathers what the cell's multi-level features say.

Reference: official `multimodal_projector/builder.py`, there for a grid of 24×24 and four levels only.

*B leading axes, P = G·G patches, s scale, Q = (G/s)² cells, K = s·s patches of one cell, C tower features,
W packer width, H heads, E head dimension, D decoder features.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from dynllava_jax.config.vision import TokenPackerProjector
from dynllava_jax.nn.linear import Linear, gelu
from dynllava_jax.nn.norm import LayerNorm

_EPS = 1e-6


class TokenPacker(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, config: TokenPackerProjector, grid: int, inputs: int, outputs: int):
        width = config.width

        def two(first: int, middle: int, last: int) -> Sequence[Linear]:
            return nnx.List(
                [
                    Linear(rngs, first, middle, (None, "mlp"), bias=True),
                    Linear(rngs, middle, last, ("mlp", "embed"), bias=True),
                ]
            )

        self.query_proj = Linear(rngs, inputs, width, (None, "embed"))
        self.key_proj = two(inputs * len(config.levels), width, width)
        self.value_proj = two(inputs * len(config.levels), width, width)
        self.query_norm = LayerNorm(rngs, width, _EPS)
        self.key_norm = LayerNorm(rngs, width, _EPS)
        self.value_norm = LayerNorm(rngs, width, _EPS)
        self.attention_in = Linear(rngs, width, 3 * width, ("embed", None), bias=True)
        self.attention_out = Linear(rngs, width, width, (None, "embed"), bias=True)
        self.mlp = two(width, outputs, outputs)
        self.side, self.scale, self.num_heads = grid // config.scale, config.scale, config.num_heads

    def __call__(
        self, features: Float[Array, "*B P C"], levels: Sequence[Float[Array, "*B P C"]] | None = None
    ) -> Float[Array, "*B Q D"]:
        if levels is None:
            raise ValueError("TokenPacker packs the tower's levels, and none were given")
        multi = jnp.concatenate(levels, axis=-1)
        query = self.query_norm(self.query_proj(_middle(_cells(features, self.side, self.scale), self.scale)))
        key = _cells(self.key_norm(_run(self.key_proj, multi)), self.side, self.scale)
        value = _cells(self.value_norm(_run(self.value_proj, multi)), self.side, self.scale)
        return _run(self.mlp, self._attend(query, key, value))

    def _attend(
        self, query: Float[Array, "*B Q W"], key: Float[Array, "*B Q K W"], value: Float[Array, "*B Q K W"]
    ) -> Float[Array, "*B Q W"]:
        """One query over its own cell, as torch's `nn.MultiheadAttention` would."""
        kernels = jnp.split(self.attention_in.kernel[...].astype(query.dtype), 3, axis=-1)
        assert self.attention_in.bias is not None
        biases = jnp.split(self.attention_in.bias[...].astype(query.dtype), 3)
        heads = [
            (jnp.einsum("...i,io->...o", x, kernel) + bias).reshape(*x.shape[:-1], self.num_heads, -1)
            for x, kernel, bias in zip((query, key, value), kernels, biases, strict=True)
        ]
        scores = jnp.einsum("...he,...khe->...hk", heads[0], heads[1], preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores * heads[0].shape[-1] ** -0.5, axis=-1).astype(query.dtype)
        return self.attention_out(jnp.einsum("...hk,...khe->...he", weights, heads[2]).reshape(query.shape))


def _cells(x: Float[Array, "*B P C"], side: int, scale: int) -> Float[Array, "*B Q K C"]:
    """Row-major cells, row-major patches inside a cell; `side` cells along each side."""
    *lead, _, width = x.shape
    x = jnp.swapaxes(x.reshape(*lead, side, scale, side, scale, width), -4, -3)
    return x.reshape(*lead, side * side, scale * scale, width)


def _middle(cells: Float[Array, "*B Q K C"], scale: int) -> Float[Array, "*B Q C"]:
    """The grid shrunk by bilinear interpolation (align_corners False, no antialias).

    For a whole scale that is the centre patch of a cell, or the mean of its middle four.
    """
    line = np.arange((scale - 1) // 2, scale // 2 + 1)
    return jnp.mean(cells[..., np.ravel(line[:, None] * scale + line), :], axis=-2)


def _run(layers: Sequence[Linear], x: Float[Array, "*B C"]) -> Float[Array, "*B D"]:
    first, second = layers
    return second(gelu(first(x)))
