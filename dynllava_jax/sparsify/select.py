"""Static-shape selection: which tokens stay, and how they close up. No boolean indexing, no data-dependent shape.

B batch, S sequence, S2 deep sequence, M images, N tokens of one image, K kept of N, D features.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Compaction(NamedTuple):
    """A stable left-pack of the kept tokens.

    Attributes:
        order: sequence index of the token that stands at each deep slot; beyond `lengths` it is arbitrary.
        lengths: kept tokens of each sample.
    """

    order: Int[Array, "B S2"]
    lengths: Int[Array, " B"]


def top_k(scores: Float[Array, "B M N"], count: int) -> Int[Array, "B M K"]:
    """Indices of the `count` highest scores, ascending. Of equal scores the lower index wins."""
    # A stable sort and not `lax.top_k`: that one is never split by sample, a mesh would gather the whole batch for it.
    index = jnp.argsort(-scores.astype(jnp.float32), axis=-1, stable=True)[..., :count].astype(jnp.int32)
    return jnp.sort(index, axis=-1)


def slots_of(mask: Bool[Array, "B S"], count: int) -> Int[Array, "B N"]:
    """Sequence indices of the first `count` true entries of each row, in order; rows with fewer end in S."""
    size = mask.shape[1]
    index = jnp.sort(jnp.where(mask, jnp.arange(size), size), axis=-1)
    return jnp.pad(index, ((0, 0), (0, max(0, count - size))), constant_values=size)[:, :count]


def rank_of(mask: Bool[Array, "B S"]) -> Int[Array, "B S"]:
    """How many true entries stand before each entry."""
    return jnp.cumsum(mask, axis=-1, dtype=jnp.int32) - mask


def image_keep(is_image: Bool[Array, "B S"], index: Int[Array, "B M K"], per_image: int) -> Bool[Array, "B S"]:
    """True at text and at the image tokens that `index` (into each image's `per_image` tokens) names."""
    batch, images, _ = index.shape
    flat = index + (jnp.arange(images) * per_image)[:, None]
    kept = jnp.zeros((batch, images * per_image), bool)
    kept = jax.vmap(lambda row, at: row.at[at].set(True))(kept, flat.reshape(batch, -1))
    rank = jnp.minimum(rank_of(is_image), images * per_image - 1)
    return jnp.where(is_image, jnp.take_along_axis(kept, rank, axis=1), True)


def compact(keep: Bool[Array, "B S"], length: int) -> Compaction:
    """Left-packs the kept tokens of each sample into `length` slots; the caller sees to it that they fit."""
    order = slots_of(keep, length)
    return Compaction(jnp.minimum(order, keep.shape[1] - 1), jnp.sum(keep, axis=-1, dtype=jnp.int32))


def take(x: Float[Array, "B S D"], order: Int[Array, "B S2"]) -> Float[Array, "B S2 D"]:
    return jnp.take_along_axis(x, order[..., None], axis=1)
