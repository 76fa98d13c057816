"""What training minimises: cross-entropy plus the squared misses of the keep rates (paper eq. 12; reference code).

B batch, S sequence.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dynllava_jax.data.batch import Batch
from dynllava_jax.model.dynllava import DynamicLlava
from dynllava_jax.training.cross_entropy import cross_entropy, supervised
from dynllava_jax.training.decisions import Rule
from dynllava_jax.training.forward import ForwardOutput, ForwardPlan, forward


class Shares(NamedTuple):
    """What each sample's terms count in the loss of the whole global batch, so that parts of it simply add up.

    Attributes:
        token: factor of a sample's summed cross-entropy.
        sample: factor of its keep-rate terms.
    """

    token: Float[Array, " B"]
    sample: Float[Array, " B"]


def shares(labels: Int[Array, "B S"], lengths: Int[Array, " B"], groups: int = 1) -> Shares:
    """Shares of a global batch; rows of length 0 only fill it and count nothing.

    Args:
        labels: of the global batch.
        lengths: tokens of each row.
        groups: 1: the mean over all supervised tokens; more: the mean over so many equal groups of rows of each
            group's mean (`LossConfig.normalise` "per_device").
    """
    tokens, real = supervised(labels), lengths > 0
    total = jnp.maximum(jnp.sum(tokens.reshape(groups, -1), axis=-1), 1)
    by_group = jnp.repeat(1.0 / (groups * total), tokens.shape[0] // groups)
    return Shares(by_group, real / jnp.maximum(jnp.sum(real), 1))


class LossOutput(NamedTuple):
    """The terms of a loss, each already multiplied by its samples' shares.

    Attributes:
        total: what is differentiated.
        terms: "ce", and "image_mask", "output_mask", "instruct_mask" (not multiplied by lambda) as far as there are
            such predictors.
        forward: the pass.
    """

    total: Float[Array, ""]
    terms: dict[str, Float[Array, ""]]
    forward: ForwardOutput


def compute_loss(
    model: DynamicLlava, batch: Batch, keys: Key[Array, " B"], rule: Rule, share: Shares, plan: ForwardPlan
) -> LossOutput:
    """The loss of a batch, or of a part of a global batch.

    Args:
        model: the weights.
        batch: with labels.
        keys: one per sample.
        rule: how decisions are made.
        share: of these rows in the global batch, from `shares`.
        plan: switches.
    """
    out = forward(model, batch, keys, rule, plan)
    sums = cross_entropy(model.decoder, out.hidden, batch.need_labels(), plan.loss.chunk)
    terms = {"ce": jnp.sum(sums * share.token)}
    total = terms["ce"]
    for place, verdict in out.decisions.verdicts().items():
        terms[f"{place}_mask"] = jnp.sum(verdict.miss * share.sample)
        total = total + plan.loss.mask_weight * terms[f"{place}_mask"]
    return LossOutput(total, terms, out)
