"""Generation without a key/value cache: every step runs prompt and answer anew (paper section 3.3.2, stage 2).

B batch.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from dynllava_jax.data.batch import Batch
from dynllava_jax.data.spans import Kind
from dynllava_jax.inference.decode import NEVER_FED, Segment, is_stop, put
from dynllava_jax.inference.prefill import PrefillOutput, PrefillPlan, prefill, see
from dynllava_jax.inference.sampling import Draws, draw
from dynllava_jax.model.dynllava import DynamicLlava, ImageTokens


@dataclasses.dataclass(frozen=True)
class NoCachePlan:
    """The static side: the pass of each step (whose `keep_policy` judges the answer so far) and the buffers."""

    prefill: PrefillPlan
    steps: int
    stop_ids: tuple[int, ...]
    pad_id: int = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class NoCacheState:
    """Generation between two steps; `token`, `count`, `budget`, `done`, `draws` as in `DecodeState`.

    Attributes:
        batch: prompt and answer so far (without `token`), pixels removed.
        images: the images as decoder inputs, seen once.
    """

    batch: Batch
    images: ImageTokens | None
    token: Int[Array, " B"] | Any
    count: Int[Array, " B"] | Any
    budget: Int[Array, " B"] | Any
    done: Bool[Array, " B"] | Any
    draws: Draws


def start(
    model: DynamicLlava, batch: Batch, budget: Int[Array, " B"], draws: Draws, plan: NoCachePlan
) -> tuple[NoCacheState, PrefillOutput]:
    """Runs the prompt and draws the first token of each answer."""
    images = see(model, batch, draws.key, plan.prefill.dtype)
    out = prefill(model, batch, draws.key, plan.prefill, images)
    token = draw(out.logits, draws, jnp.zeros_like(budget))
    count = jnp.minimum(jnp.ones_like(budget), budget)
    done = is_stop(token, plan.stop_ids) | (count >= budget)
    return NoCacheState(dataclasses.replace(batch, images=None), images, token, count, budget, done, draws), out


def segment(
    model: DynamicLlava, state: NoCacheState, limit: Int[Array, ""], plan: NoCachePlan
) -> tuple[NoCacheState, Segment]:
    """Runs at most `limit` steps, until every answer is done."""
    rows = state.token.shape[0]
    buffers = Segment(
        tokens=jnp.full((rows, plan.steps), plan.pad_id, jnp.int32),
        keep=jnp.full((rows, plan.steps), NEVER_FED, jnp.int32),
        logits=None,
        steps=jnp.zeros((), jnp.int32),
    )

    def unfinished(carry: tuple[NoCacheState, Segment]) -> Bool[Array, ""]:
        state, out = carry
        return (out.steps < jnp.minimum(limit, plan.steps)) & ~jnp.all(state.done)

    def body(carry: tuple[NoCacheState, Segment]) -> tuple[NoCacheState, Segment]:
        return _step(model, *carry, plan)

    return jax.lax.while_loop(unfinished, body, (state, buffers))


def append(batch: Batch, token: Int[Array, " B"], active: Bool[Array, " B"]) -> Batch:
    """The batch with one more answer token in each active row."""
    here = (jnp.arange(batch.tokens.shape[1]) == batch.lengths[:, None]) & active[:, None]
    return dataclasses.replace(
        batch,
        tokens=jnp.where(here, token[:, None], batch.tokens),
        kind=jnp.where(here, Kind.ANSWER, batch.kind).astype(batch.kind.dtype),
        positions=jnp.where(here, batch.lengths[:, None], batch.positions),
        lengths=batch.lengths + active,
    )


def _step(model: DynamicLlava, state: NoCacheState, out: Segment, plan: NoCachePlan) -> tuple[NoCacheState, Segment]:
    active = ~state.done
    batch = append(state.batch, state.token, active)
    seen = prefill(model, batch, state.draws.key, plan.prefill, state.images)
    token = jnp.where(active, draw(seen.logits, state.draws, state.count), plan.pad_id)
    count = state.count + active
    done = state.done | is_stop(token, plan.stop_ids) | (count >= state.budget)
    logits = seen.selection.text_logits
    if logits is None or plan.prefill.sparsity.output_selector is None or model.output_predictor is None:
        keep = active.astype(jnp.int32)  # nobody judges answers, whoever judged the instruction
    else:
        # The fed token always takes part in its own step; reported is what later steps will decide on it.
        fed = jnp.take_along_axis(logits, (batch.lengths - 1)[:, None, None], axis=1)[:, 0]
        keep = (fed[:, 0] > fed[:, 1]).astype(jnp.int32)
    written = Segment(
        tokens=put(out.tokens, token, out.steps),
        keep=put(out.keep, jnp.where(active, keep, NEVER_FED), out.steps),
        logits=None,
        steps=out.steps + 1,
    )
    return NoCacheState(batch, state.images, token, count, state.budget, done, state.draws), written
