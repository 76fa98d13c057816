"""Normalisation over the last axis, always computed in float32.

*B leading axes, D features.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dynllava_jax.nn.param import ones, param, zeros


class RmsNorm(nnx.Module):
    """Llama's RMSNorm: cast back to the input's dtype before the scale, as transformers does."""

    def __init__(self, rngs: nnx.Rngs, width: int, eps: float):
        self.scale = param(rngs, (width,), ("norm",), ones)
        self.eps = eps

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + self.eps)
        return y.astype(x.dtype) * self.scale[...].astype(x.dtype)


class LayerNorm(nnx.Module):
    """torch's `nn.LayerNorm`."""

    def __init__(self, rngs: nnx.Rngs, width: int, eps: float = 1e-5):
        self.scale = param(rngs, (width,), ("norm",), ones)
        self.bias = param(rngs, (width,), ("norm",), zeros)
        self.eps = eps

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        y = x.astype(jnp.float32)
        mean = jnp.mean(y, axis=-1, keepdims=True)
        variance = jnp.mean(jnp.square(y - mean), axis=-1, keepdims=True)
        y = (y - mean) * jax.lax.rsqrt(variance + self.eps)
        return (y * self.scale[...] + self.bias[...]).astype(x.dtype)
