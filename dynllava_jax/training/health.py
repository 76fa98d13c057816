"""Are the predictors alive? What they decide, how surely, and whether it depends on what they see.

A predictor can collapse while the loss still falls: it keeps everything, drops everything, or keeps the same
positions of every image.

R images of a batch, N tokens of one.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.training.decisions import Decisions, Verdict

_PLACES = ("image", "output", "instruct")

_ALL, _NONE = 0.98, 0.02
"""Rates from which on everything counts as kept, or dropped, where the target lies within."""
_SAME = 0.9
"""Overlap from which on the kept positions count as the same."""
_UNDECIDED = 0.95
"""Entropy, in bits, of a predictor whose decisions are those of the noise."""
_APART = 0.15
"""Distance from which on training and inference keep different shares."""


def health(trained: Decisions, used: Decisions) -> dict[str, Float[Array, ""]]:
    """Numbers about every predictor, `PLACE_NAME`; NaN where one had nothing to judge.

    Args:
        trained: what training decided about a batch, with the noise.
        used: what inference would decide about the same batch.

    Returns:
        soft_rate: mean keep probability.
        gumbel_rate: share of tokens that training kept.
        inference_rate: share of the same tokens that inference would keep.
        spread: deviation of the margin keep - drop among the tokens of an image or answer, mean over these.
        entropy: of the keep probability, mean over tokens, in bits: 1 undecided, 0 certain.
        image_overlap: how alike the images' kept positions are, see `overlap`, and image_overlap_chance.
    """
    numbers = {}
    for place, verdict in trained.verdicts().items():
        if verdict.logits is not None:
            found = _decided(verdict) | {"inference_rate": _mean(used.verdicts()[place].keep, verdict.judged)}
            numbers |= {f"{place}_{name}": value for name, value in found.items()}
    if used.image is not None:
        kept = used.image.keep.reshape(-1, used.image.keep.shape[-1])
        present = used.image.judged.reshape(kept.shape)[:, 0]
        numbers |= {"image_overlap": overlap(kept, present), "image_overlap_chance": _by_chance(kept, present)}
    return numbers


def _decided(verdict: Verdict) -> dict[str, Float[Array, ""]]:
    assert verdict.logits is not None
    margin = (verdict.logits[..., 0] - verdict.logits[..., 1]).astype(jnp.float32)
    keep = jax.nn.sigmoid(margin)
    bits = (jax.nn.softplus(margin) - keep * margin) / math.log(2)
    count = jnp.sum(verdict.judged, axis=-1)
    centre = _sum(margin, verdict.judged, axis=-1) / jnp.maximum(count, 1)
    variance = _sum((margin - centre[..., None]) ** 2, verdict.judged, axis=-1) / jnp.maximum(count, 1)
    return {
        "soft_rate": _mean(keep, verdict.judged),
        "gumbel_rate": _mean(verdict.keep, verdict.judged),
        "spread": _mean(jnp.sqrt(variance), count > 0),
        "entropy": _mean(bits, verdict.judged),
    }


def overlap(kept: Float[Array, "R N"], present: Bool[Array, " R"]) -> Float[Array, ""]:
    """Intersection over union of the kept positions, mean over pairs of images.

    Args:
        kept: 1 or 0.
        present: rows that are images.

    Returns:
        1 for the same positions everywhere; NaN for fewer than two images.
    """
    kept = jnp.round(kept)
    common, count = kept @ kept.T, jnp.sum(kept, axis=-1)
    union = count[:, None] + count[None] - common
    pairs = present[:, None] & present[None] & ~jnp.eye(len(present), dtype=bool)
    return _mean(common / jnp.maximum(union, 1.0), pairs)


def _by_chance(kept: Float[Array, "R N"], present: Bool[Array, " R"]) -> Float[Array, ""]:
    """What `overlap` is near for random positions, as many as are kept."""
    rate = _mean(jnp.mean(kept, axis=-1), present)
    return rate / (2.0 - rate)


def gradient_norms(gradients: Mapping[str, Array]) -> dict[str, Float[Array, ""]]:
    """The norm of each part's gradient by the first word of its paths: projector, decoder, image_predictor, …"""
    squares: dict[str, Array] = {}
    for path, gradient in gradients.items():
        part = path.partition("/")[0]
        squares[part] = squares.get(part, jnp.zeros(())) + jnp.sum(jnp.square(gradient.astype(jnp.float32)))
    return {part: jnp.sqrt(square) for part, square in squares.items()}


def warnings(numbers: Mapping[str, float], sparsity: SparsityConfig) -> dict[str, str]:
    """One sentence for each sign of collapse, with the setting to try, by a name that stays while it lasts.

    Args:
        numbers: what `health` gives.
        sparsity: the rates asked for.
    """
    found = {}
    for place in _PLACES:
        found |= _rate_warning(numbers, place, getattr(sparsity, f"{place}_keep_rate"))
    overlap, chance = numbers.get("image_overlap", math.nan), numbers.get("image_overlap_chance", math.nan)
    if overlap > _SAME > chance:
        found["image same"] = (
            f"The image predictor keeps the same positions of every image (overlap {overlap:.2f}, by chance "
            f"{chance:.2f}): try a larger optimizer.predictor_learning_rate, or a larger gumbel.start and gumbel.end."
        )
    return found


def _rate_warning(numbers: Mapping[str, float], place: str, target: float) -> dict[str, str]:
    rate, used, entropy = (
        numbers.get(f"{place}_{name}", math.nan) for name in ("gumbel_rate", "inference_rate", "entropy")
    )
    asked = f"{rate:.0%} where {target:.0%} is asked for"
    if rate > _ALL > target:
        return {
            f"{place} all": f"The {place} predictor keeps everything ({asked}): try a larger loss.mask_weight or "
            "optimizer.predictor_learning_rate."
        }
    if rate < _NONE < target:
        return {
            f"{place} none": f"The {place} predictor drops everything ({asked}): try a smaller "
            "optimizer.predictor_learning_rate, or a larger gumbel.start, whose noise lets it see both choices."
        }
    # Images are selected by top-k, which always hits its rate; and one that has not begun to decide says nothing yet.
    if place != "image" and entropy < _UNDECIDED and abs(rate - used) > _APART:
        return {
            f"{place} apart": f"The {place} predictor keeps {rate:.0%} in training, and would keep {used:.0%} in use, "
            "without noise: try a smaller gumbel.end, or train longer."
        }
    return {}


def _sum(values: Array, mask: Array, axis: int | None = None) -> Array:
    return jnp.sum(jnp.where(mask, values, 0.0), axis=axis)


def _mean(values: Array, mask: Array) -> Array:
    count = jnp.sum(mask)
    return jnp.where(count > 0, _sum(values, mask) / jnp.maximum(count, 1), jnp.nan)
