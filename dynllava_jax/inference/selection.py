"""What leaves the sequence between the shallow and the deep stack.

B batch, S sequence, S2 deep sequence, M images, P image tokens of one image, K kept of P, D hidden size.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.data.batch import Batch
from dynllava_jax.data.spans import Kind
from dynllava_jax.model.decoder import StackOutput
from dynllava_jax.model.dynllava import DynamicLlava, selector_context
from dynllava_jax.sparsify.policy import KeepPolicy, Threshold
from dynllava_jax.sparsify.select import compact, image_keep, rank_of, slots_of, top_k
from dynllava_jax.sparsify.selector import ImageView, Merged, TextSelector, TokenView, check_result


class Selection(NamedTuple):
    """The decisions of one pass.

    Attributes:
        keep: which tokens of the sequence enter the deep stack.
        order: sequence index of the token at each deep slot.
        lengths: kept tokens of each sample.
        image_index: kept tokens inside each image, ascending; None when images are not selected.
        image_scores: what was ranked, float32; None for merged tokens or without selection.
        text_logits: keep and drop logit of every token that a text predictor judged, 0 elsewhere; None without one.
    """

    keep: Bool[Array, "B S"]
    order: Int[Array, "B S2"]
    lengths: Int[Array, " B"]
    image_index: Int[Array, "B M K"] | None
    image_scores: Float[Array, "B M P"] | None
    text_logits: Float[Array, "B S 2"] | None


@dataclasses.dataclass(frozen=True)
class Rules:
    """The static side of a selection.

    Attributes:
        sparsity: what is dropped.
        images: M, image slots of a sample.
        deep_length: S2, slots of the deep sequence.
        keep_policy: rule for answer tokens that stand in the batch.
    """

    sparsity: SparsityConfig
    images: int
    deep_length: int
    keep_policy: KeepPolicy


def select(
    model: DynamicLlava, batch: Batch, shallow: StackOutput, keys: Key[Array, " B"], rules: Rules
) -> tuple[Selection, Float[Array, "B S D"]]:
    """Judges the residual stream that leaves the shallow stack; merged image tokens are written into it."""
    hidden = shallow.hidden
    keep = batch.kind != Kind.PAD
    index = scores = None
    sparsity = rules.sparsity
    if rules.images and sparsity.image_selector is not None and model.image_predictor is not None:
        is_image = batch.kind == Kind.IMAGE
        chosen = _judge_images(model, batch, shallow, keys, rules)
        if isinstance(chosen, Merged):
            index = chosen.index
            hidden = _write_merged(hidden, is_image, chosen, model.config.image_tokens)
        else:
            scores = chosen
            index = top_k(scores, sparsity.kept("image", model.config.image_tokens))
        keep = keep & image_keep(is_image, index, model.config.image_tokens)
    judged = _judge_text(model, batch, hidden, keys, rules)
    logits = None
    for verdict in judged:
        keep = keep & ~verdict.drop
        logits = verdict.logits if logits is None else logits + verdict.logits
    order, lengths = compact(keep, rules.deep_length)
    return Selection(keep, order, lengths, index, scores, logits), hidden


def text_logits(selector: TextSelector, view: TokenView) -> Float[Array, "B T 2"]:
    """Keep and drop logit of each token; a selector that only gives margins has the drop logit 0."""
    if hasattr(selector, "logits"):
        return selector.logits(view.hidden).astype(jnp.float32)
    margin = selector(view).astype(jnp.float32)
    return jnp.stack([margin, jnp.zeros_like(margin)], axis=-1)


class _Verdict(NamedTuple):
    drop: Bool[Array, "B S"]
    logits: Float[Array, "B S 2"]


def _judge_text(
    model: DynamicLlava,
    batch: Batch,
    hidden: Float[Array, "B S D"],
    keys: Key[Array, " B"],
    rules: Rules,
) -> list[_Verdict]:
    verdicts = []
    places = (
        (rules.sparsity.instruct_selector, model.instruct_predictor, Kind.LAST_INSTRUCTION, Threshold()),
        (rules.sparsity.output_selector, model.output_predictor, Kind.ANSWER, rules.keep_policy),
    )
    for wanted, predictor, kind, rule in places:
        if wanted is None or predictor is None:
            continue
        span = batch.kind == kind
        # The very last token is the one that speaks next: it is never dropped.
        candidates = span & (jnp.arange(span.shape[1]) != (batch.lengths - 1)[:, None])
        logits = text_logits(predictor, TokenView(hidden, rank_of(span), keys))
        drop = candidates & ~rule(logits, candidates)
        verdicts.append(_Verdict(drop, jnp.where(span[..., None], logits, 0.0)))
    return verdicts


def _judge_images(
    model: DynamicLlava, batch: Batch, shallow: StackOutput, keys: Key[Array, " B"], rules: Rules
) -> Float[Array, "B M P"] | Merged:
    config = dataclasses.replace(model.config, sparsity=rules.sparsity)
    images, per_image = rules.images, config.image_tokens
    slots = jnp.minimum(slots_of(batch.kind == Kind.IMAGE, images * per_image), batch.kind.shape[1] - 1)
    features = jnp.take_along_axis(shallow.hidden, slots[..., None], axis=1)
    attention = shallow.watched
    if attention is not None:
        attention = jnp.take_along_axis(attention, slots[:, None], axis=2)
        attention = attention.reshape(*attention.shape[:2], images, per_image)
    view = ImageView(
        features=features.reshape(features.shape[0], images, per_image, -1),
        present=jnp.arange(images) < batch.image_count[:, None],
        hidden=shallow.hidden,
        kind=batch.kind,
        question=batch.kind == Kind.LAST_INSTRUCTION,
        attention=attention,
        keys=keys,
    )
    return check_result(model.image_predictor, selector_context(config, "image"), view)


def _write_merged(
    hidden: Float[Array, "B S D"], is_image: Bool[Array, "B S"], merged: Merged, per_image: int
) -> Float[Array, "B S D"]:
    batch, images, kept, width = merged.tokens.shape
    flat = (merged.index + (jnp.arange(images) * per_image)[:, None]).reshape(batch, -1)
    slots = jnp.take_along_axis(slots_of(is_image, images * per_image), flat, axis=1)
    tokens = merged.tokens.astype(hidden.dtype).reshape(batch, images * kept, width)
    # Slots of absent images lie beyond the end and are dropped.
    return jax.vmap(lambda rows, at, new: rows.at[at].set(new, mode="drop"))(hidden, slots, tokens)
