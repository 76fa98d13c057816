"""One pass over training samples: every token stays, dropped ones are hidden from the others (paper section 3.3).

B batch, S sequence, D hidden size.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from dynllava_jax.config.training import LossConfig
from dynllava_jax.data.batch import Batch
from dynllava_jax.data.spans import Kind
from dynllava_jax.inference.prefill import see
from dynllava_jax.inference.selection import watch_prompt
from dynllava_jax.kernels import api, xla
from dynllava_jax.model.decoder import Remat, run_stack
from dynllava_jax.model.dynllava import DynamicLlava
from dynllava_jax.model.probe import NOTHING, Probe
from dynllava_jax.nn.rope import rope
from dynllava_jax.sparsify.eviction import Eviction
from dynllava_jax.training.decisions import Decisions, GumbelRule, Rule, decide
from dynllava_jax.training.evicted import Evicted


@dataclasses.dataclass(frozen=True)
class ForwardPlan:
    """The static side of a training pass.

    Attributes:
        loss: thresholds of the spans, eps of the policy softmax.
        remat: see `model.decoder.Remat`.
        attention: implementation of attention (see `kernels.api`).
        dtype: compute dtype.
        probe: what to show besides.
        eviction: under `InferenceRule`, a cache policy for the answer in the deep layers, to compare with.
    """

    loss: LossConfig = LossConfig()
    remat: Remat = "full"
    attention: api.Implementation = None
    dtype: str = "float32"
    probe: Probe = NOTHING
    eviction: Eviction | None = None


class ForwardOutput(NamedTuple):
    """What a training pass leaves behind.

    Attributes:
        hidden: residual stream after the last layer, before the final norm.
        decisions: the predictors'.
        selected_from: residual stream that the predictors judged.
        lowest: the smallest denominator of the policy softmax, if the probe asks for it and there is a policy.
        held: share of the answer's keys that its last token finds under the eviction, over layers and heads, or None.
    """

    hidden: Float[Array, "B S D"]
    decisions: Decisions
    selected_from: Float[Array, "B S D"]
    lowest: Float[Array, ""] | None
    held: Float[Array, " B"] | None


def forward(model: DynamicLlava, batch: Batch, keys: Key[Array, " B"], rule: Rule, plan: ForwardPlan) -> ForwardOutput:
    """Runs samples through both stacks with nothing removed.

    Under `InferenceRule` each position's result is what sparsified inference gives there, token by token on a cache:
    a dropped token is invisible to later ones and sees itself.

    Args:
        model: the weights.
        batch: right-padded samples.
        keys: one PRNG key per sample, for selectors that draw.
        rule: how predictors' logits become decisions.
        plan: switches.
    """
    dtype = jnp.dtype(plan.dtype)
    images = see(model, batch, keys, plan.dtype)
    features = None if images is None else images.features
    hidden = model.embed(
        batch.tokens, batch.kind == Kind.IMAGE, features, dtype, untrained=model.config.text_prep.pad_id
    )
    by = rope(model.config.decoder, batch.positions)

    def everything(query: Array, key: Array, value: Array, layer: Array) -> Array:
        del layer
        return api.attention(query, key, value, implementation=plan.attention)

    watch = None if images is None else watch_prompt(model, batch, model.config.sparsity)
    shallow = run_stack(model.decoder.shallow, hidden, by, everything, watch=watch, remat=plan.remat)
    with jax.named_scope("selection"):
        decisions = decide(model, batch, shallow, keys, rule, plan.loss)
    policy, selected = decisions.policy, shallow.hidden
    if policy is not None and plan.loss.zero_dropped and isinstance(rule, GumbelRule):
        image = batch.kind == Kind.IMAGE
        selected = selected * jnp.where(image, policy, 1.0)[:, :, None].astype(selected.dtype)
        policy = jnp.where(image, 1.0, policy)
    evicted = None
    if plan.eviction is not None:
        assert not isinstance(rule, GumbelRule), "an eviction has no gradient"
        evicted = Evicted(plan.eviction, batch.kind == Kind.ANSWER, None if policy is None else policy > 0)

    def under_policy(query: Array, key: Array, value: Array, layer: Array) -> Array:
        if evicted is not None:
            return evicted.attention(query, key, value)
        if policy is None:
            return everything(query, key, value, layer)
        if isinstance(rule, GumbelRule):
            eps, kernel = plan.loss.eps, plan.attention
            return api.policy_attention(query, key, value, policy, batch.lengths, eps=eps, implementation=kernel)
        return api.attention(query, key, value, keep=policy > 0, implementation=plan.attention)

    def denominators(query: Array, key: Array) -> Array:
        assert policy is not None
        return xla.lowest_denominator(query, key, policy, batch.lengths, eps=plan.loss.eps)

    probed = plan.probe.denominator and policy is not None and isinstance(rule, GumbelRule)
    watch = denominators if probed else None if evicted is None else evicted.held
    deep = run_stack(model.decoder.deep, selected, by, under_policy, watch=watch, remat=plan.remat)
    lowest = jnp.min(deep.watched) if probed and deep.watched is not None else None
    held = jnp.mean(deep.watched, axis=0) if evicted is not None and deep.watched is not None else None
    return ForwardOutput(deep.hidden, decisions, shallow.hidden, lowest, held)
