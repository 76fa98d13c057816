"""How the next token is drawn.

B batch, V vocabulary.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from dynllava_jax.config.check import check_fields, check_positive, check_rate


@dataclasses.dataclass(frozen=True)
class Greedy:
    """The most likely token."""


GREEDY = Greedy()


@dataclasses.dataclass(frozen=True)
class Temperature:
    """Draws from softmax(logits / temperature)."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive(self, "temperature")


@dataclasses.dataclass(frozen=True)
class TopK:
    """Draws among the `k` most likely tokens."""

    k: int
    temperature: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive(self, "k", "temperature")


@dataclasses.dataclass(frozen=True)
class TopP:
    """Draws among the most likely tokens that together reach probability `p`, of the best `k` when given."""

    p: float
    temperature: float = 1.0
    k: int | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive(self, "temperature")
        check_rate(self, "p")
        if self.k is not None:
            check_positive(self, "k")


Sampler = Greedy | Temperature | TopK | TopP

_MOST_INT, _MOST_FLOAT = int(np.iinfo(np.int32).max), float(np.finfo(np.float32).max)


class Draws(NamedTuple):
    """Every sample's own sampler as numbers, so that one program serves any mixture of them.

    Attributes:
        temperature: 0 means greedy.
        k: 0 means the whole vocabulary.
        p: 1 means no cut.
        key: each sample's own; its n-th token is drawn with `fold_in(key, n)`, whoever stands beside it.
    """

    temperature: Float[Array, " B"]
    k: Int[Array, " B"]
    p: Float[Array, " B"]
    key: Key[Array, " B"]


def as_numbers(sampler: Sampler) -> tuple[float, int, float]:
    """(temperature, k, p) of one sampler, as `Draws` wants them; what 32 bits cannot hold is the most that they can."""
    temperature = min(getattr(sampler, "temperature", 0.0), _MOST_FLOAT)
    return temperature, min(getattr(sampler, "k", None) or 0, _MOST_INT), getattr(sampler, "p", 1.0)


def draw(logits: Float[Array, "B V"], draws: Draws, count: Int[Array, " B"]) -> Int[Array, " B"]:
    """The next token of each sample, `count` tokens having been drawn before it."""
    greedy = jnp.argmax(logits, axis=-1).astype(jnp.int32)

    def at_random() -> Int[Array, " B"]:
        keys = jax.vmap(jax.random.fold_in)(draws.key, count)
        drawn = jax.vmap(jax.random.categorical)(keys, _cut(logits, draws)).astype(jnp.int32)
        return jnp.where(draws.temperature > 0, drawn, greedy)

    # Sorting the vocabulary costs; a batch of greedy requests must not pay for it.
    return jax.lax.cond(jnp.any(draws.temperature > 0), at_random, lambda: greedy)


def _cut(logits: Float[Array, "B V"], draws: Draws) -> Float[Array, "B V"]:
    """Scaled logits with everything outside top-k and top-p at -inf."""
    scaled = logits / jnp.maximum(draws.temperature, 1e-6)[:, None]
    ordered = jnp.sort(scaled, axis=-1, descending=True)
    size = logits.shape[-1]
    k = jnp.where(draws.k > 0, jnp.minimum(draws.k, size), size)
    ordered = jnp.where(jnp.arange(size) < k[:, None], ordered, -jnp.inf)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities
    # p = 1 means no cut, whatever the sum of many small numbers comes to; the best stays, though p may round to 0.
    inside = (before < draws.p[:, None]) | (draws.p[:, None] >= 1.0) | (jnp.arange(size) == 0)
    inside = inside & jnp.isfinite(ordered)
    lowest = jnp.min(jnp.where(inside, ordered, jnp.inf), axis=-1, keepdims=True)
    return jnp.where(scaled >= lowest, scaled, -jnp.inf)
