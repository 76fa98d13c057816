"""How the output predictor's logits become keep decisions when a whole answer is judged at once (no cache).

B batch, S sequence.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


@runtime_checkable
class KeepPolicy(Protocol):
    """Decides over the candidate tokens; everything else is not its business. Hashable, jit-static."""

    def __call__(self, logits: Float[Array, "B S 2"], candidates: Bool[Array, "B S"]) -> Bool[Array, "B S"]: ...


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Keep iff logit 0 > logit 1: each token by itself, as the cached decode does."""

    def __call__(self, logits: Float[Array, "B S 2"], candidates: Bool[Array, "B S"]) -> Bool[Array, "B S"]:
        return candidates & (logits[..., 0] > logits[..., 1])


@dataclasses.dataclass(frozen=True)
class OfficialTopN:
    """The official rule without a cache, for comparison only (see `docs/differences.md`).

    Every sample keeps as many tokens as the most generous sample of the batch passes by `Threshold`, ranked by
    the raw logit 0. It couples the samples of a batch.
    """

    def __call__(self, logits: Float[Array, "B S 2"], candidates: Bool[Array, "B S"]) -> Bool[Array, "B S"]:
        count = jnp.max(jnp.sum(Threshold()(logits, candidates), axis=-1))
        score = jnp.where(candidates, logits[..., 0], -jnp.inf)
        place = jnp.argsort(jnp.argsort(-score, axis=-1, stable=True), axis=-1)
        return candidates & (place < count)
