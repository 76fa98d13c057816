"""What the predictors decide in training: nothing leaves the sequence, a policy says who may still be seen.

B batch, S sequence, M images per sample, P image tokens of one image, N of all images, D hidden size.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dynllava_jax.config.training import LossConfig
from dynllava_jax.data.batch import Batch
from dynllava_jax.data.spans import Kind
from dynllava_jax.errors import InputError
from dynllava_jax.inference.selection import image_view, text_logits
from dynllava_jax.model.decoder import StackOutput
from dynllava_jax.model.dynllava import DynamicLlava, selector_context
from dynllava_jax.sparsify.gumbel import gumbel_noise, straight_through
from dynllava_jax.sparsify.select import rank_of, top_k
from dynllava_jax.sparsify.selector import PLACES, Merged, Place, TextPlace, TokenView, check_result


class Noise(NamedTuple):
    """Gumbel noise of every token that may be judged; the text predictors' stands where the token stands."""

    image: Float[Array, "B M P 2"] | None
    output: Float[Array, "B S 2"] | None
    instruct: Float[Array, "B S 2"] | None


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GumbelRule:
    """Training: Gumbel-Softmax with the straight-through estimator."""

    noise: Noise
    tau: Float[Array, ""]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class InferenceRule:
    """Evaluation: the K best of each image, text by the sign of its margin; every answer, however short."""


Rule = GumbelRule | InferenceRule


class Verdict(NamedTuple):
    """One predictor's decisions.

    Attributes:
        logits: float32 keep and drop logit; None of a selector that has none.
        keep: 1 or 0, with a gradient where `GumbelRule` decided.
        judged: the tokens that it decides about: none of a text that is too short to be sparsified, or of an absent
            image.
        miss: squared distance of each sample's keep rate from the wanted one, 0 where there is nothing to judge.
    """

    logits: Float[Array, "B ... 2"] | None
    keep: Float[Array, "B ..."]
    judged: Bool[Array, "B ..."]
    miss: Float[Array, " B"]


class Decisions(NamedTuple):
    """All predictors' decisions.

    Attributes:
        policy: 1 where later tokens may see a token, 0 where they may not; None when nothing is ever dropped.
        image, output, instruct: verdicts, or None where there is no predictor.
    """

    policy: Float[Array, "B S"] | None
    image: Verdict | None
    output: Verdict | None
    instruct: Verdict | None

    def verdicts(self) -> dict[Place, Verdict]:
        found: dict[Place, Verdict | None] = {"image": self.image, "output": self.output, "instruct": self.instruct}
        return {place: verdict for place, verdict in found.items() if verdict is not None}


_TEXT: tuple[tuple[TextPlace, Kind], ...] = (("output", Kind.ANSWER), ("instruct", Kind.LAST_INSTRUCTION))


def draw_noise(batch: Batch, keys: Key[Array, " B"], image_tokens: int) -> Noise:
    """Noise of all predictors from one key per sample: image tokens by slot, text tokens by offset in the span."""
    length = batch.kind.shape[1]
    image = None
    if batch.images is not None:
        slots = batch.images.shape[1] * image_tokens
        index = jnp.broadcast_to(jnp.arange(slots), (batch.kind.shape[0], slots))
        image = gumbel_noise(keys, PLACES.index("image"), index)
        image = image.reshape(image.shape[0], -1, image_tokens, 2)
    text = {
        place: gumbel_noise(keys, PLACES.index(place), jnp.minimum(rank_of(batch.kind == kind), length))
        for place, kind in _TEXT
    }
    return Noise(image, text["output"], text["instruct"])


def decide(
    model: DynamicLlava, batch: Batch, shallow: StackOutput, keys: Key[Array, " B"], rule: Rule, loss: LossConfig
) -> Decisions:
    """Judges the residual stream that leaves the shallow stack (reference: the official training forward).

    A selector without keep and drop logits (random, stride, a user's ranking) decides as at inference, and no
    gradient reaches it.

    Raises:
        InputError: a selector that merges tokens: in training nothing leaves the sequence.
    """
    image = _judge_images(model, batch, shallow, keys, rule)
    text = {place: _judge_text(model, batch, shallow.hidden, keys, rule, loss, place, kind) for place, kind in _TEXT}
    policy = None
    if image is not None or any(verdict is not None for verdict in text.values()):
        policy = jnp.ones(batch.kind.shape, jnp.float32)
        if image is not None:
            policy = _lay_out(policy, batch.kind == Kind.IMAGE, image.keep.reshape(policy.shape[0], -1))
        for verdict in text.values():
            policy = policy if verdict is None else jnp.where(verdict.judged, verdict.keep, policy)
    return Decisions(policy, image, text["output"], text["instruct"])


def _judge_images(
    model: DynamicLlava, batch: Batch, shallow: StackOutput, keys: Key[Array, " B"], rule: Rule
) -> Verdict | None:
    selector, config = model.image_predictor, model.config
    if selector is None or batch.images is None:
        return None
    images = batch.images.shape[1]
    view = image_view(model, batch, shallow, keys, images)
    logits = selector.logits(view.features).astype(jnp.float32) if hasattr(selector, "logits") else None
    if isinstance(rule, GumbelRule) and logits is not None:
        assert rule.noise.image is not None
        keep = straight_through(logits, rule.noise.image, rule.tau)
    else:
        context = selector_context(config, "image")
        scores = check_result(selector, context, view)
        if isinstance(scores, Merged):
            raise InputError(
                f"{type(selector).__name__} merges image tokens; training keeps every token in the sequence, so use a "
                "selector that scores them."
            )
        keep = jnp.sum(jax.nn.one_hot(top_k(scores, context.kept), config.image_tokens), axis=-2)
    judged = jnp.broadcast_to(view.present[..., None], keep.shape)
    missed = jnp.square(config.sparsity.image_keep_rate - jnp.mean(keep, axis=-1))
    missed = jnp.sum(jnp.where(view.present, missed, 0.0), axis=-1) / jnp.maximum(batch.image_count, 1)
    return Verdict(logits, keep, judged, missed if logits is not None else jnp.zeros_like(missed))


def _judge_text(
    model: DynamicLlava,
    batch: Batch,
    hidden: Float[Array, "B S D"],
    keys: Key[Array, " B"],
    rule: Rule,
    loss: LossConfig,
    place: TextPlace,
    kind: Kind,
) -> Verdict | None:
    selector = getattr(model, f"{place}_predictor")
    if selector is None:
        return None
    rate: float = getattr(model.config.sparsity, f"{place}_keep_rate")
    span = batch.kind == kind
    count = jnp.sum(span, axis=-1, keepdims=True)
    logits = text_logits(selector, TokenView(hidden, rank_of(span), keys, rate))
    learned = hasattr(selector, "logits")
    if isinstance(rule, GumbelRule):
        shortest = loss.min_answer_tokens if place == "output" else loss.min_instruction_tokens
        judged = span & (count >= shortest)
    else:
        # The last token of the prompt is the one that speaks next: inference never drops it.
        judged = span & ~_last(span) if place == "instruct" else span
    if isinstance(rule, GumbelRule) and learned:
        keep = straight_through(logits, getattr(rule.noise, place), rule.tau)
    else:
        keep = (logits[..., 0] > logits[..., 1]).astype(jnp.float32)
    keep = jnp.where(judged, keep, 1.0)
    mean = jnp.sum(jnp.where(span, keep, 0.0), axis=-1) / jnp.maximum(count[:, 0], 1)
    missed = jnp.where(jnp.any(judged, axis=-1), jnp.square(rate - mean), 0.0)
    return Verdict(logits, keep, judged, missed if learned else jnp.zeros_like(missed))


def _last(span: Bool[Array, "B S"]) -> Bool[Array, "B S"]:
    return span & (rank_of(span) == jnp.sum(span, axis=-1, keepdims=True) - 1)


def _lay_out(
    policy: Float[Array, "B S"], is_image: Bool[Array, "B S"], keep: Float[Array, "B N"]
) -> Float[Array, "B S"]:
    """Decisions of image tokens, image after image, at their places in the sequence."""
    index: Int[Array, "B S"] = jnp.minimum(rank_of(is_image), keep.shape[1] - 1)
    return jnp.where(is_image, jnp.take_along_axis(keep, index, axis=1), policy)
