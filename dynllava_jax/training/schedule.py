"""What changes from step to step: the learning rate and the Gumbel temperature. Steps count from 0.

*N: steps, if there are several.
"""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dynllava_jax.config.training import GumbelConfig


def warmup_steps(total: int, ratio: float) -> int:
    """Rounded up, as transformers does; 0.03 of 100 steps are 3."""
    return math.ceil(total * ratio)


def cosine(step: Int[Array, "*N"] | int, total: int, warmup: int) -> Float[Array, "*N"]:
    """Factor of the learning rate in a step, float32: a linear rise, then half a cosine down to 0.

    transformers' `get_cosine_schedule_with_warmup`; the first step has 0 whenever there is a warmup. Written as a
    squared sine of what is left, which keeps all digits where the cosine's 1 + cos(π·progress) cancels.
    """
    step = jnp.asarray(step)
    rise = step.astype(jnp.float32) / max(1, warmup)
    left = jnp.clip((total - step).astype(jnp.float32) / max(1, total - warmup), 0.0, 1.0)
    return jnp.where(step < warmup, rise, jnp.square(jnp.sin(left * (math.pi / 2))))


def temperature(step: Int[Array, "*N"] | int, total: int, config: GumbelConfig) -> Float[Array, "*N"]:
    """Gumbel temperature start · (end / start)^(step / total), float32; the last step does not reach `end`."""
    progress = jnp.asarray(step).astype(jnp.float32) / total
    return config.start * jnp.exp(progress * math.log(config.end / config.start))
