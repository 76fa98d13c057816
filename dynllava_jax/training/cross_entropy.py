"""Next-token cross-entropy whose vocabulary logits exist for one chunk of positions at a time.

B batch, S sequence, Q positions of one chunk, D hidden size, V vocabulary.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dynllava_jax.data.spans import IGNORE
from dynllava_jax.model.decoder import Decoder
from dynllava_jax.nn.constrain import constrain


def shift(labels: Int[Array, "B S"]) -> Int[Array, "B S"]:
    """The label that each position has to predict: the next one's."""
    return jnp.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE)


def supervised(labels: Int[Array, "B S"]) -> Int[Array, " B"]:
    """Positions of each sample that predict a label."""
    return jnp.sum(shift(labels) != IGNORE, axis=-1, dtype=jnp.int32)


def cross_entropy(
    decoder: Decoder, hidden: Float[Array, "B S D"], labels: Int[Array, "B S"], chunk: int
) -> Float[Array, " B"]:
    """Sum over each sample's labels of −log p(label), in float32.

    Args:
        decoder: final norm and vocabulary head.
        hidden: residual stream after the last layer.
        labels: ids, IGNORE elsewhere; that of a position is predicted by the one before.
        chunk: positions of every sample whose logits are held together; the backward pass computes them anew.
    """
    targets = shift(labels)
    room = -targets.shape[1] % chunk
    targets = jnp.pad(targets, ((0, 0), (0, room)), constant_values=IGNORE)
    hidden = jnp.pad(hidden, ((0, 0), (0, room), (0, 0)))
    # Gathered once, before the loop over chunks.
    kernel = constrain(decoder.head_kernel(hidden.dtype), "embed", "vocab")

    def one(total: Float[Array, " B"], start: Int[Array, ""]) -> tuple[Float[Array, " B"], None]:
        states = jax.lax.dynamic_slice_in_dim(hidden, start, chunk, axis=1)
        wanted = jax.lax.dynamic_slice_in_dim(targets, start, chunk, axis=1)
        return total + _sum(decoder, kernel, states, wanted), None

    starts = jnp.arange(0, hidden.shape[1], chunk)
    total, _ = jax.lax.scan(jax.checkpoint(one, prevent_cse=False), jnp.zeros(hidden.shape[0]), starts)
    return total


def _sum(
    decoder: Decoder, kernel: Float[Array, "D V"], hidden: Float[Array, "B Q D"], targets: Int[Array, "B Q"]
) -> Float[Array, " B"]:
    logits = jnp.einsum("bqd,dv->bqv", decoder.final_norm(hidden), kernel).astype(jnp.float32)
    logits = constrain(logits, "batch", "seq", "vocab")
    real = targets != IGNORE
    at = jnp.take_along_axis(logits, jnp.where(real, targets, 0)[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(real, jax.nn.logsumexp(logits, axis=-1) - at, 0.0), axis=-1)
