"""What leaves the sequence between the shallow and the deep stack.

B batch, S sequence, S2 deep sequence, M images, P image tokens of one image, K kept of P, D hidden size,
T text tokens.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.data.batch import Batch
from dynllava_jax.data.spans import Kind
from dynllava_jax.kernels import xla
from dynllava_jax.model.decoder import StackOutput, Watch
from dynllava_jax.model.dynllava import DynamicLlava, selector_context
from dynllava_jax.model.predictors import Scorer
from dynllava_jax.model.probe import Probe
from dynllava_jax.sparsify.policy import KeepPolicy, Threshold
from dynllava_jax.sparsify.select import compact, image_keep, rank_of, slots_of, top_k
from dynllava_jax.sparsify.selector import ImageView, Merged, TextSelector, TokenView, check_margins, check_result


class Selection(NamedTuple):
    """The decisions of one pass.

    Attributes:
        keep: which tokens of the sequence enter the deep stack.
        order: sequence index of the token at each deep slot.
        lengths: kept tokens of each sample.
        image_index: kept tokens inside each image, ascending; None when images are not selected.
        image_scores: what was ranked, float32; None for merged tokens or without selection.
        text_logits: keep and drop logit of every token that a text predictor judged, 0 elsewhere; None without one.
        image_logits: keep and drop logit of every image token, when the probe asks and the selector has them.
    """

    keep: Bool[Array, "B S"]
    order: Int[Array, "B S2"]
    lengths: Int[Array, " B"]
    image_index: Int[Array, "B M K"] | None
    image_scores: Float[Array, "B M P"] | None
    text_logits: Float[Array, "B S 2"] | None
    image_logits: Float[Array, "B M P 2"] | None


@dataclasses.dataclass(frozen=True)
class Rules:
    """The static side of a selection.

    Attributes:
        sparsity: what is dropped.
        images: M, image slots of a sample.
        deep_length: S2, slots of the deep sequence.
        keep_policy: rule for answer tokens that stand in the batch.
        probe: what to show besides.
    """

    sparsity: SparsityConfig
    images: int
    deep_length: int
    keep_policy: KeepPolicy
    probe: Probe


def select(
    model: DynamicLlava, batch: Batch, shallow: StackOutput, keys: Key[Array, " B"], rules: Rules
) -> tuple[Selection, Float[Array, "B S D"]]:
    """Judges the residual stream that leaves the shallow stack; merged image tokens are written into it."""
    hidden = shallow.hidden
    keep = batch.kind != Kind.PAD
    index = scores = image_logits = None
    sparsity = rules.sparsity
    if rules.images and sparsity.image_selector is not None and model.image_predictor is not None:
        is_image = batch.kind == Kind.IMAGE
        view = image_view(model, batch, shallow, keys, rules.images)
        context = selector_context(dataclasses.replace(model.config, sparsity=sparsity), "image")
        chosen = check_result(model.image_predictor, context, view)
        if rules.probe.selection and hasattr(model.image_predictor, "logits"):
            image_logits = model.image_predictor.logits(view.features).astype(jnp.float32)
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
    return Selection(keep, order, lengths, index, scores, logits, image_logits), hidden


def last_of_prompt(batch: Batch) -> Int[Array, " B"]:
    """The query that attention-based selectors rank by: the same one at every step of an answer."""
    return jnp.maximum(batch.lengths - jnp.sum(batch.kind == Kind.ANSWER, axis=-1) - 1, 0)


def watch_prompt(model: DynamicLlava, batch: Batch, sparsity: SparsityConfig) -> Watch | None:
    """Attention weights [B,H,S] of `last_of_prompt`, if the selector after the shallow stack asks for them."""
    selector = model.image_predictor
    if sparsity.image_selector is None or selector is None or not selector.wants_attention:
        return None
    at = last_of_prompt(batch)

    def watch(query: Array, key: Array) -> Array:
        return xla.query_weights(jnp.take_along_axis(query, at[:, None, None, None], axis=2)[:, :, 0], key, at + 1)

    return watch


def image_view(
    model: DynamicLlava, batch: Batch, shallow: StackOutput, keys: Key[Array, " B"], images: int
) -> ImageView:
    """What the selector after the shallow stack may look at, for M = `images` slots a sample."""
    per_image = model.config.image_tokens
    slots = jnp.minimum(slots_of(batch.kind == Kind.IMAGE, images * per_image), batch.kind.shape[1] - 1)
    features = jnp.take_along_axis(shallow.hidden, slots[..., None], axis=1)
    attention = None
    if shallow.watched is not None:
        attention = shallow.watched[-1]
        attention = jnp.take_along_axis(attention, slots[:, None], axis=2)
        attention = attention.reshape(*attention.shape[:2], images, per_image)
    return ImageView(
        features=features.reshape(features.shape[0], images, per_image, -1),
        present=jnp.arange(images) < batch.image_count[:, None],
        hidden=shallow.hidden,
        kind=batch.kind,
        question=batch.kind == Kind.LAST_INSTRUCTION,
        attention=attention,
        keys=keys,
    )


def text_logits(selector: TextSelector, view: TokenView) -> Float[Array, "B T 2"]:
    """Keep and drop logit of each token; a selector that only gives margins has the drop logit 0."""
    if isinstance(selector, Scorer):
        return selector.logits(view.hidden).astype(jnp.float32)
    margin = check_margins(selector, view)
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
        ("instruct", model.instruct_predictor, Kind.LAST_INSTRUCTION, Threshold()),
        ("output", model.output_predictor, Kind.ANSWER, rules.keep_policy),
    )
    for place, predictor, kind, rule in places:
        wanted, rate = (getattr(rules.sparsity, f"{place}_{name}") for name in ("selector", "keep_rate"))
        if wanted is None or predictor is None:
            continue
        span = batch.kind == kind
        # The last token of a span is the one that speaks next: it is never dropped. That of the prompt stays even
        # when answer tokens follow it (decoding without a cache), because the cache has stored it by then.
        rank = rank_of(span)
        candidates = span & (rank != jnp.sum(span, axis=-1, keepdims=True) - 1)
        logits = text_logits(predictor, TokenView(hidden, rank, keys, rate))
        drop = candidates & ~rule(logits, candidates)
        verdicts.append(_Verdict(drop, jnp.where(span[..., None], logits, 0.0)))
    return verdicts


def _write_merged(
    hidden: Float[Array, "B S D"], is_image: Bool[Array, "B S"], merged: Merged, per_image: int
) -> Float[Array, "B S D"]:
    batch, images, kept, width = merged.tokens.shape
    flat = (merged.index + (jnp.arange(images) * per_image)[:, None]).reshape(batch, -1)
    slots = jnp.take_along_axis(slots_of(is_image, images * per_image), flat, axis=1)
    tokens = merged.tokens.astype(hidden.dtype).reshape(batch, images * kept, width)
    # Slots of absent images lie beyond the end and are dropped.
    return jax.vmap(lambda rows, at, new: rows.at[at].set(new, mode="drop"))(hidden, slots, tokens)
