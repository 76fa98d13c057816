"""Attention of a whole sequence in which a cache policy throws out keys of the answer again and again.

B batch, S sequence, H query heads, G key/value heads, R queries per group, T tokens of the answer (padded to S),
E head dimension.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dynllava_jax.kernels import xla
from dynllava_jax.sparsify.eviction import Eviction
from dynllava_jax.sparsify.select import rank_of, slots_of


class Evicted(NamedTuple):
    """What one pass fixes: the policy, which keys are the answer's, and which others decided against (None: none)."""

    eviction: Eviction
    answer: Bool[Array, "B S"]
    keep: Bool[Array, "B S"] | None

    def attention(
        self, query: Float[Array, "B H S E"], key: Float[Array, "B G S E"], value: Float[Array, "B G S E"]
    ) -> Float[Array, "B H S E"]:
        """As `kernels.xla.attention`, but the answer's queries find what the policy leaves."""
        scores, found = self._finds(query, key)
        # Rows beyond the answer find nothing, and nobody asks for them.
        raw = jnp.where(found[:, :, None], scores, -jnp.inf)
        weights = jnp.where(found[:, :, None], jax.nn.softmax(raw, axis=-1), 0.0)
        rank = rank_of(self.answer)[:, None, :, None]
        mine = jnp.take_along_axis(xla.combine(weights, value), rank, axis=2)
        return jnp.where(self.answer[:, None, :, None], mine, xla.attention(query, key, value, keep=self.keep))

    def held(self, query: Float[Array, "B H S E"], key: Float[Array, "B G S E"]) -> Float[Array, " B"]:
        """Share of the answer's keys that its last token finds, over the heads."""
        count = jnp.sum(self.answer, axis=-1)
        _, found = self._finds(query, key)
        last = jnp.take_along_axis(found, jnp.maximum(count - 1, 0)[:, None, None, None], axis=2)[:, :, 0]
        return jnp.mean(jnp.sum(last & self.answer[:, None], axis=-1), axis=-1) / jnp.maximum(count, 1)

    def _finds(
        self, query: Float[Array, "B H S E"], key: Float[Array, "B G S E"]
    ) -> tuple[Float[Array, "B G R T S"], Bool[Array, "B G T S"]]:
        batch, heads, length, width = query.shape
        slots = slots_of(self.answer, length)
        at: Int[Array, "B T"] = jnp.minimum(slots, length - 1)
        asking = jnp.take_along_axis(query, at[:, None, :, None], axis=2)
        asking = asking.reshape(batch, key.shape[1], heads // key.shape[1], length, width)
        scores = jnp.einsum("bgrte,bgse->bgrts", asking, key, preferred_element_type=jnp.float32) / math.sqrt(width)
        place = jnp.arange(length)
        visible = (place <= at[..., None]) & (slots < length)[..., None]
        if self.keep is not None:
            visible = visible & (self.keep[:, None] | (place == at[..., None]))
        return scores, self.eviction(scores, visible, self.answer)
