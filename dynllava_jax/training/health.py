"""Are the predictors alive? What they decide, how surely, and whether it depends on what they see.

A predictor can collapse while the loss still falls: it keeps everything, drops everything, or keeps the same
positions of every image.

R rows (images, or samples with an answer), N tokens judged in a row.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.sparsify.select import top_k

PLACES = ("image", "output", "instruct")

_ALL, _NONE = 0.98, 0.02
"""Rates from which on everything counts as kept, or dropped, where the target lies within."""
_SAME = 0.9
"""Overlap from which on the kept positions count as the same."""
_APART = 0.15
"""Distance from which on training and inference keep different shares."""


class Judged(NamedTuple):
    """What one predictor said in a training step.

    Attributes:
        logits: keep and drop, before the noise.
        kept: the decisions that training took, with the noise: 1 or 0.
        mask: which tokens it had to judge.
    """

    logits: Float[Array, "R N 2"]
    kept: Float[Array, "R N"]
    mask: Bool[Array, "R N"]


def decisions(judged: Judged) -> dict[str, Float[Array, ""]]:
    """Numbers about one predictor; NaN where it had nothing to judge.

    Returns:
        soft_rate: mean keep probability.
        gumbel_rate: share kept by training's noisy decisions.
        argmax_rate: share kept without the noise, which is inference's rule for answers.
        spread: deviation of the margin keep - drop within a row, mean over rows.
        entropy: of the keep probability, mean over tokens, in bits: 1 undecided, 0 certain.
    """
    logits = judged.logits.astype(jnp.float32)
    margin = logits[..., 0] - logits[..., 1]
    keep = jax.nn.sigmoid(margin)
    bits = (jax.nn.softplus(margin) - keep * margin) / math.log(2)
    count = jnp.sum(judged.mask, axis=-1)
    centre = _sum(margin, judged.mask, axis=-1) / jnp.maximum(count, 1)
    variance = _sum((margin - centre[:, None]) ** 2, judged.mask, axis=-1) / jnp.maximum(count, 1)
    return {
        "soft_rate": _mean(keep, judged.mask),
        "gumbel_rate": _mean(judged.kept.astype(jnp.float32), judged.mask),
        "argmax_rate": _mean((margin > 0).astype(jnp.float32), judged.mask),
        "spread": _mean(jnp.sqrt(variance), count > 0),
        "entropy": _mean(bits, judged.mask),
    }


def overlap(judged: Judged, kept: int) -> Float[Array, ""]:
    """How alike the images' kept positions are: intersection over union, mean over pairs of images.

    Args:
        judged: rows are images, judged whole or (those that only fill the batch) not at all.
        kept: K, of inference's top-k.

    Returns:
        1 for the same positions everywhere; NaN for fewer than two images.
    """
    rows, size = judged.mask.shape
    logits = judged.logits.astype(jnp.float32)
    index = top_k((logits[..., 0] - logits[..., 1])[None], kept)[0]
    chosen = jnp.zeros((rows, size)).at[jnp.arange(rows)[:, None], index].set(1.0)
    common = chosen @ chosen.T
    there = jnp.any(judged.mask, axis=-1)
    pairs = there[:, None] & there[None] & ~jnp.eye(rows, dtype=bool)
    return _mean(common / (2 * kept - common), pairs)


def overlap_by_chance(kept: int, size: int) -> float:
    """What `overlap` is near for random positions."""
    common = kept * kept / size
    return common / (2 * kept - common)


def gradient_norms(gradients: Any) -> dict[str, Float[Array, ""]]:
    """The norm of each part's gradient: projector, decoder, image_predictor, …; parts without one are absent."""
    squares: dict[str, Array] = {}
    for path, leaf in nnx.to_flat_state(gradients):
        value = leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf
        part = str(path[0])
        squares[part] = squares.get(part, jnp.zeros(())) + jnp.sum(jnp.square(value.astype(jnp.float32)))
    return {part: jnp.sqrt(square) for part, square in squares.items()}


def warnings(health: Mapping[str, float], sparsity: SparsityConfig) -> Sequence[str]:
    """One sentence for each sign of collapse, with the setting to try.

    Args:
        health: `PLACE/NAME` -> number, NAME as in `decisions`, and `image/overlap`, `image/overlap_chance`.
        sparsity: the rates asked for.
    """
    return [
        sentence
        for place in PLACES
        for sentence in _rate_warnings(health, place, getattr(sparsity, f"{place}_keep_rate"))
    ] + _overlap_warnings(health)


def _rate_warnings(health: Mapping[str, float], place: str, target: float) -> list[str]:
    rate, argmax = health.get(f"{place}/gumbel_rate", math.nan), health.get(f"{place}/argmax_rate", math.nan)
    asked = f"{rate:.0%} where {target:.0%} is asked for"
    if rate > _ALL > target:
        return [
            f"The {place} predictor keeps everything ({asked}): try a larger loss.mask_weight or "
            "optimizer.predictor_learning_rate."
        ]
    if rate < _NONE < target:
        return [
            f"The {place} predictor drops everything ({asked}): try a smaller optimizer.predictor_learning_rate, or a "
            "larger gumbel.start, whose noise lets it see both choices."
        ]
    if place != "image" and abs(rate - argmax) > _APART:  # images are selected by top-k, which hits its rate always
        return [
            f"The {place} predictor keeps {rate:.0%} in training, and would keep {argmax:.0%} in use, without noise: "
            "try a smaller gumbel.end, or train longer."
        ]
    return []


def _overlap_warnings(health: Mapping[str, float]) -> list[str]:
    found, chance = health.get("image/overlap", math.nan), health.get("image/overlap_chance", math.nan)
    if not found > _SAME > chance:
        return []
    return [
        f"The image predictor keeps the same positions of every image (overlap {found:.2f}, by chance {chance:.2f}): "
        "try a larger optimizer.predictor_learning_rate, or a larger gumbel.start and gumbel.end."
    ]


def _sum(values: Array, mask: Array, axis: int | None = None) -> Array:
    return jnp.sum(jnp.where(mask, values, 0.0), axis=axis)


def _mean(values: Array, mask: Array) -> Array:
    count = jnp.sum(mask)
    return jnp.where(count > 0, _sum(values, mask) / jnp.maximum(count, 1), jnp.nan)
