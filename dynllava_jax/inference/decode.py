"""Generation on the device: one segment of tokens is one `lax.while_loop`.

B batch, T tokens of one segment at most, V vocabulary.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dynllava_jax.inference.cache import Cache
from dynllava_jax.inference.extend import ExtendPlan, extend
from dynllava_jax.inference.sampling import Draws, draw
from dynllava_jax.model.dynllava import DynamicLlava

NEVER_FED = -1
"""Keep decision of a token that was never fed back: nobody judged it."""


@dataclasses.dataclass(frozen=True)
class SegmentPlan:
    """The static side of a segment.

    Attributes:
        extend: switches of each step; a probe for logits collects them.
        steps: T, size of the output buffers.
        stop_ids: tokens that end an answer.
        pad_id: what stands in the buffers where a sample was already done.
    """

    extend: ExtendPlan
    steps: int
    stop_ids: tuple[int, ...]
    pad_id: int = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class DecodeState:
    """Generation between two segments.

    Attributes:
        cache: both stacks'; does not hold `token` yet.
        token: the newest token of each sample, to be fed next.
        count: answer tokens so far, `token` included.
        budget: answer tokens allowed.
        done: answers that are finished: their lengths stand still.
        draws: each sample's sampler.
    """

    cache: Cache
    token: Int[Array, " B"] | Any
    count: Int[Array, " B"] | Any
    budget: Int[Array, " B"] | Any
    done: Bool[Array, " B"] | Any
    draws: Draws


class Segment(NamedTuple):
    """What one segment produced; columns from `steps` on are unwritten.

    Attributes:
        tokens: the new token of each step.
        keep: 1 or 0, the decision on the token that was *fed* in each step; `NEVER_FED` where none was.
        logits: float32 of each step, or None when not asked for.
        steps: how many steps were run.
    """

    tokens: Int[Array, "B T"]
    keep: Int[Array, "B T"]
    logits: Float[Array, "B T V"] | None
    steps: Int[Array, ""]


def start(
    logits: Float[Array, "B V"], cache: Cache, budget: Int[Array, " B"], draws: Draws, stop_ids: tuple[int, ...]
) -> DecodeState:
    """Draws the first token of each answer from the prompt's last logits. A budget of 0 marks a padding row."""
    token = draw(logits, draws, jnp.zeros_like(budget))
    count = jnp.minimum(jnp.ones_like(budget), budget)
    return DecodeState(cache, token, count, budget, is_stop(token, stop_ids) | (count >= budget), draws)


def segment(
    model: DynamicLlava, state: DecodeState, limit: Int[Array, ""], plan: SegmentPlan
) -> tuple[DecodeState, Segment]:
    """Runs at most `limit` steps: until every answer is done, or a stack's cache is full and has to grow."""
    rows = state.token.shape[0]
    buffers = Segment(
        tokens=jnp.full((rows, plan.steps), plan.pad_id, jnp.int32),
        keep=jnp.full((rows, plan.steps), NEVER_FED, jnp.int32),
        logits=jnp.zeros((rows, plan.steps, model.config.decoder.vocab_size)) if plan.extend.probe.logits else None,
        steps=jnp.zeros((), jnp.int32),
    )

    def unfinished(carry: tuple[DecodeState, Segment]) -> Bool[Array, ""]:
        state, out = carry
        return (out.steps < jnp.minimum(limit, plan.steps)) & ~jnp.all(state.done) & has_room(state)

    def body(carry: tuple[DecodeState, Segment]) -> tuple[DecodeState, Segment]:
        return _step(model, *carry, plan)

    return jax.lax.while_loop(unfinished, body, (state, buffers))


def has_room(state: DecodeState) -> Bool[Array, ""]:
    """Whether every unfinished sample can store one more token in both stacks."""

    def room(stack) -> Bool[Array, ""]:
        return jnp.max(jnp.where(state.done, 0, stack.length)) < stack.capacity

    return room(state.cache.shallow) & room(state.cache.deep)


def _step(model: DynamicLlava, state: DecodeState, out: Segment, plan: SegmentPlan) -> tuple[DecodeState, Segment]:
    active = ~state.done
    seen = extend(
        model,
        state.token[:, None],
        active.astype(jnp.int32),
        state.cache,
        state.draws.key,
        plan.extend,
        answered=state.count - 1,
    )
    logits = seen.logits[:, 0] if plan.extend.probe.logits else seen.logits
    token = jnp.where(active, draw(logits, state.draws, state.count), plan.pad_id)
    count = state.count + active
    done = state.done | is_stop(token, plan.stop_ids) | (count >= state.budget)
    keep = jnp.where(active, seen.keep[:, 0], NEVER_FED)
    written = Segment(
        tokens=put(out.tokens, token, out.steps),
        keep=put(out.keep, keep, out.steps),
        logits=None if out.logits is None else put(out.logits, logits, out.steps),
        steps=out.steps + 1,
    )
    return DecodeState(seen.cache, token, count, state.budget, done, state.draws), written


def put(buffer: Array, column: Array, at: Int[Array, ""]) -> Array:
    return jax.lax.dynamic_update_index_in_dim(buffer, column.astype(buffer.dtype), at, axis=1)


def is_stop(token: Int[Array, " B"], stop_ids: tuple[int, ...]) -> Bool[Array, " B"]:
    return jnp.isin(token, jnp.asarray(stop_ids, jnp.int32))
