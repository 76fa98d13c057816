"""Shares, means and perplexities with their uncertainty.

N questions, K quantities of each, R resamplings.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Shaped

_RESAMPLINGS = 2000


class Interval(NamedTuple):
    """A figure and its 95 % interval, from bootstrap resampling of the questions."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def exact(answer: str, wanted: str) -> bool:
    """Exact match, but for case, spaces around and a full stop."""
    return _plain(answer) == _plain(wanted)


def share(right: Bool[np.ndarray, " N"], seed: int = 0) -> Interval:
    """The share of right answers."""
    return _interval(float(np.mean(right)), _resampled(right[:, None], seed)[:, 0])


def ratio(right: Bool[np.ndarray, " N"], base: Bool[np.ndarray, " N"], seed: int = 0) -> Interval:
    """Share of right answers over that of another model on the same questions, which are resampled together."""
    means = _resampled(np.stack([right, base], axis=1), seed)
    value = float(np.mean(right) / np.mean(base)) if base.any() else float("nan")
    with np.errstate(divide="ignore", invalid="ignore"):
        return _interval(value, means[:, 0] / means[:, 1])


def mean(values: Float[np.ndarray, " N"], seed: int = 0) -> Interval:
    return _interval(float(np.mean(values)), _resampled(values[:, None], seed)[:, 0])


def perplexity(losses: Float[np.ndarray, " N"], tokens: Float[np.ndarray, " N"], seed: int = 0) -> Interval:
    """The exponential of the mean loss of a token, from each text's summed loss and its tokens; texts are resampled."""
    means = _resampled(np.stack([losses, tokens], axis=1), seed)
    with np.errstate(over="ignore"):
        return _interval(float(np.exp(np.sum(losses) / np.sum(tokens))), np.exp(means[:, 0] / means[:, 1]))


def _resampled(right: Shaped[np.ndarray, "N K"], seed: int) -> Float[np.ndarray, "R K"]:
    rng = np.random.default_rng(seed)
    count = len(right)
    return np.stack([right[rng.integers(0, count, count)].mean(0) for _ in range(_RESAMPLINGS)])


def _interval(value: float, samples: Float[np.ndarray, " R"]) -> Interval:
    low, high = np.percentile(samples, (2.5, 97.5))
    return Interval(value, float(low), float(high))


def _plain(text: str) -> str:
    return text.strip().rstrip(".").rstrip().lower()
