"""Rotary position embedding (rotate-half), in float32.

B batch, H heads, S sequence, E head dimension.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from dynllava_jax.config.decoder import DecoderConfig, LinearScaling, Llama3Scaling


class Rope(NamedTuple):
    """Cosine and sine of every position's angles, shared by all layers and heads."""

    cos: Float[Array, "B S E"]
    sin: Float[Array, "B S E"]


def rope(config: DecoderConfig, positions: Int[Array, "B S"]) -> Rope:
    """The rotation of each position. Positions are the original ones: selection never renumbers them."""
    angles = positions.astype(jnp.float32)[..., None] * jnp.asarray(inverse_frequencies(config))
    angles = jnp.concatenate([angles, angles], axis=-1)
    return Rope(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "B H S E"], by: Rope) -> Float[Array, "B H S E"]:
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    y = x.astype(jnp.float32) * by.cos[:, None] + turned * by.sin[:, None]
    return y.astype(x.dtype)


def inverse_frequencies(config: DecoderConfig) -> np.ndarray:
    """float32 [E/2]. Dynamic NTK equals plain RoPE within the trained context, the only range that is allowed."""
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    frequencies = (1.0 / np.float32(config.rope_theta) ** exponent).astype(np.float32)
    scaling = config.rope_scaling
    if isinstance(scaling, LinearScaling):
        return frequencies / np.float32(scaling.factor)
    if isinstance(scaling, Llama3Scaling):
        return _llama3(frequencies, scaling)
    return frequencies


def _llama3(frequencies: np.ndarray, scaling: Llama3Scaling) -> np.ndarray:
    """Long wavelengths are stretched by `factor`, short ones kept, those between interpolated."""
    wavelength = 2 * math.pi / frequencies
    turns = scaling.original_max_position / wavelength
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = np.clip(smooth, 0.0, 1.0)
    return ((1 - smooth) * frequencies / scaling.factor + smooth * frequencies).astype(np.float32)
