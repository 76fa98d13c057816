"""Stops a run whose loss is no number any more, or explodes."""

import math

from dynllava_jax.errors import CheckError

_MEMORY = 0.98
"""Of the running mean: about the last 50 steps count."""
_PATIENCE = 20
"""Steps before a mean means something."""


class LossWatch:
    """Compares each loss with the mean of those before it."""

    def __init__(self, explosion: float) -> None:
        self._explosion = explosion
        self._mean = 0.0
        self._seen = 0

    def problem(self, loss: float) -> str | None:
        """What is wrong with a step's loss, or None."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if self._seen >= _PATIENCE and loss > self._explosion * self._mean:
            return f"the loss is {loss:.4g}, {loss / self._mean:.0f} times its running mean of {self._mean:.4g}"
        self._seen += 1
        weight = max(1.0 - _MEMORY, 1.0 / self._seen)
        self._mean += weight * (loss - self._mean)
        return None


def stopped(step: int, problem: str, ids: tuple[str, ...], last_good: int | None) -> CheckError:
    """The error that ends the run.

    Args:
        step: whose loss it is.
        problem: see `LossWatch`.
        ids: of the samples in its batch.
        last_good: newest checkpoint.
    """
    saved = "there is no checkpoint yet" if last_good is None else f"the last checkpoint is that of step {last_good}"
    return CheckError(f"Stopped at step {step}: {problem}; its samples are {', '.join(ids)}; {saved}.")
