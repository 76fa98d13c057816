"""Cache policies that throw out what was stored before: H2O and StreamingLLM, for comparison.

The decode cache of this package decides when a token is written and never again, which is the paper's point: no
attention scores are looked at, and nothing is moved. What these policies throw out they throw out later, by each
head for itself. So they are evaluated in the masked form of a whole, given sequence (teacher-forced, for perplexity):
which keys each token of the answer would still find. As everywhere in the comparison, the prompt stays, and the answer
has a budget of `rate` times its length.

B batch, G key/value heads, R queries per group, T tokens of the answer, S sequence.
"""

import dataclasses
from typing import Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dynllava_jax.config.check import check_fields, check_rate
from dynllava_jax.sparsify.select import rank_of


@runtime_checkable
class Eviction(Protocol):
    """Hashable, jit-static."""

    def __call__(
        self, scores: Float[Array, "B G R T S"], visible: Bool[Array, "B T S"], answer: Bool[Array, "B S"]
    ) -> Bool[Array, "B G T S"]:
        """Which keys each answer token finds.

        Args:
            scores: of one layer, before the softmax.
            visible: what it could find if nothing were thrown out: the prompt's keys, and the answer's up to its own.
            answer: which keys are the answer's.
        """
        ...


@dataclasses.dataclass(frozen=True)
class _Budgeted:
    """Keeps at most `rate` times the answer's tokens."""

    rate: float = 0.5

    def __post_init__(self) -> None:
        check_fields(self)
        check_rate(self, "rate")

    def _budget(self, answer: Bool[Array, "B S"]) -> Int[Array, " B"]:
        return jnp.maximum(1, (jnp.sum(answer, axis=-1) * self.rate).astype(jnp.int32))


@dataclasses.dataclass(frozen=True)
class SlidingWindow(_Budgeted):
    """The newest `rate`·T keys of the answer, the token's own among them (StreamingLLM, arXiv 2309.17453).

    Its attention sinks, the first four tokens, are part of the prompt, which stays. Positions are the original ones:
    the cache's own, which that method counts instead, only matter beyond the trained context.
    """

    def __call__(
        self, scores: Float[Array, "B G R T S"], visible: Bool[Array, "B T S"], answer: Bool[Array, "B S"]
    ) -> Bool[Array, "B G T S"]:
        age = jnp.arange(visible.shape[1])[:, None] - rank_of(answer)[:, None]
        kept = visible & (~answer[:, None] | (age < self._budget(answer)[:, None, None]))
        return jnp.broadcast_to(kept[:, None], (*scores.shape[:2], *kept.shape[1:]))


@dataclasses.dataclass(frozen=True)
class HeavyHitters(_Budgeted):
    """H2O (arXiv 2306.14048, algorithm 1): half of the budget for the newest keys, half for the heavy hitters.

    When a new key exceeds the budget, the one among the older keys goes whose attention, summed over all answer
    tokens so far, is the least. Each key/value head sums and decides for itself.
    """

    def __call__(
        self, scores: Float[Array, "B G R T S"], visible: Bool[Array, "B T S"], answer: Bool[Array, "B S"]
    ) -> Bool[Array, "B G T S"]:
        batch, groups, _, count, length = scores.shape
        rank, budget = rank_of(answer), self._budget(answer)
        newest = budget // 2

        def step(
            state: tuple[Bool[Array, "B G S"], Float[Array, "B G S"]], token: Int[Array, ""]
        ) -> tuple[tuple[Bool[Array, "B G S"], Float[Array, "B G S"]], Bool[Array, "B G S"]]:
            held, weight = state
            held = held | (answer & (rank == token))[:, None]
            found = held & visible[:, token][:, None]
            raw = jnp.where(found[:, :, None], scores[:, :, :, token], -jnp.inf)
            # Rows beyond the answer find nothing; their softmax has no meaning.
            weights = jnp.where(found[:, :, None], jax.nn.softmax(raw, axis=-1), 0.0)
            weight = weight + jnp.sum(weights, axis=2)
            older = held & (answer & (rank <= token - newest[:, None]))[:, None]
            last = jnp.argmin(jnp.where(older, weight, jnp.inf), axis=-1)
            full = jnp.sum(held & answer[:, None], axis=-1) > budget[:, None]
            goes = full[..., None] & older & (jnp.arange(length) == last[..., None])
            return (held & ~goes, weight), found

        start = jnp.broadcast_to(~answer[:, None], (batch, groups, length)), jnp.zeros((batch, groups, length))
        return jnp.moveaxis(jax.lax.scan(step, start, jnp.arange(count))[1], 0, 2)
