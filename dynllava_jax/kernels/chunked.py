"""Attention in plain XLA, some queries at a time: for training where no kernel serves.

B batch, H query heads, G key/value heads, S sequence, C queries of one chunk, E head dimension.

Scores of one chunk are all that is ever held, also in the backward pass, which computes them again.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dynllava_jax.kernels import tuning, xla


def attention(
    query: Float[Array, "B H S E"],
    key: Float[Array, "B G S E"],
    value: Float[Array, "B G S E"],
    *,
    keep: Bool[Array, "B S"] | None = None,
) -> Float[Array, "B H S E"]:
    """See `xla.attention`."""
    return _in_chunks(lambda chunk, first: xla.attention_weights(chunk, key, keep, first=first), query, value)


def policy_attention(
    query: Float[Array, "B H S E"],
    key: Float[Array, "B G S E"],
    value: Float[Array, "B G S E"],
    policy: Float[Array, "B S"],
    lengths: Int[Array, " B"],
    *,
    eps: float = 1e-6,
    causal: bool = True,
) -> Float[Array, "B H S E"]:
    """See `xla.policy_attention`."""

    def weights(chunk: Array, first: Array) -> Array:
        return xla.policy_weights(chunk, key, policy, lengths, eps=eps, causal=causal, first=first)

    return _in_chunks(weights, query, value)


def _in_chunks(
    weights: Callable[[Array, Array], Array], query: Float[Array, "B H S E"], value: Float[Array, "B G S E"]
) -> Float[Array, "B H S E"]:
    length, chunk = query.shape[2], min(query.shape[2], tuning.CHUNK)
    # The last chunk goes over some rows of the one before again, rather than over rows that do not exist.
    starts = [min(start, length - chunk) for start in range(0, length, chunk)]
    chunks = jnp.stack([query[:, :, start : start + chunk] for start in starts])

    @jax.checkpoint
    def one(part: tuple[Float[Array, "B H C E"], Int[Array, ""]]) -> Float[Array, "B H C E"]:
        return xla.combine(weights(*part), value)

    parts = list(jax.lax.map(one, (chunks, jnp.asarray(starts))))
    parts[-1] = parts[-1][:, :, len(starts) * chunk - length :]
    return jnp.concatenate(parts, axis=2)
