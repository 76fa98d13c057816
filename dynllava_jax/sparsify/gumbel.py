"""Keep decisions that a gradient passes: Gumbel-Softmax with a straight-through estimator (paper section 3.3.3).

B batch, T tokens.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key


def straight_through(
    logits: Float[Array, "*B 2"], noise: Float[Array, "*B 2"], tau: Float[Array, ""] | float
) -> Float[Array, "*B"]:
    """1 where a token is kept, 0 where it is dropped, with the gradient of the soft keep probability.

    Official `F.gumbel_softmax(log_softmax(logits), tau, hard=True)[..., 0]`: as there the value is hard − soft + soft
    in float32, so that a 1 may read 0.9999999.

    Args:
        logits: keep logit, drop logit.
        noise: Gumbel(0, 1).
        tau: temperature.
    """
    noisy = (jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1) + noise) / tau
    soft = jax.nn.softmax(noisy, axis=-1)[..., 0]
    hard = (noisy[..., 0] >= noisy[..., 1]).astype(jnp.float32)
    return hard - jax.lax.stop_gradient(soft) + soft


def gumbel_noise(keys: Key[Array, " B"], place: int, index: Int[Array, "B T"]) -> Float[Array, "B T 2"]:
    """Gumbel(0, 1) noise of single tokens, from the sample's key and the token's own number.

    Whatever else stands in the batch, how long it is padded and which device computes it: the noise is the same.

    Args:
        keys: one per sample.
        place: which predictor the noise is for.
        index: number of a token inside its span.
    """

    def one(key: Key[Array, ""], number: Int[Array, ""]) -> Float[Array, " 2"]:
        return jax.random.gumbel(jax.random.fold_in(key, number), (2,), jnp.float32)

    def sample(key: Key[Array, ""], numbers: Int[Array, " T"]) -> Float[Array, "T 2"]:
        return jax.vmap(one, (None, 0))(jax.random.fold_in(key, place), numbers)

    return jax.vmap(sample)(keys, index)
