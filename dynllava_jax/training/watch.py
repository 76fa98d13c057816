"""Stops a run whose loss or gradient is no number any more, or whose loss explodes."""

import math
from collections.abc import Mapping

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
        if loss == 0.0:
            return None  # a batch that teaches nothing, since no sample of it could be read, says nothing of the others
        if self._seen >= _PATIENCE and loss > self._explosion * self._mean:
            return f"the loss is {loss:.4g}, {loss / self._mean:.0f} times its running mean of {self._mean:.4g}"
        self._seen += 1
        weight = max(1.0 - _MEMORY, 1.0 / self._seen)
        self._mean += weight * (loss - self._mean)
        return None


def gradient_problem(values: Mapping[str, float]) -> str | None:
    """What is wrong with a step's gradient, or None: the parameters that it gave are lost, though the loss, which is
    that of the parameters before, looks well.

    Args:
        values: a step's metrics, with "grad_norm" and "grad_norm/PART".
    """
    norms = {name: value for name, value in values.items() if name.partition("/")[0] == "grad_norm"}
    bad = {name: value for name, value in norms.items() if not math.isfinite(value)}
    parts = sorted(name.partition("/")[2] for name in bad if "/" in name)
    if not bad:
        return None
    return f"the gradient of {', '.join(parts) or 'all parts together'} is {next(iter(bad.values()))}"


def stopped(step: int, problem: str, ids: tuple[str, ...], last_good: int | None) -> CheckError:
    """The error that ends the run.

    Args:
        step: whose loss it is.
        problem: see `LossWatch`.
        ids: of the samples in its batch.
        last_good: newest checkpoint.
    """
    saved = "there is no checkpoint yet" if last_good is None else f"the last checkpoint is that of step {last_good}"
    return CheckError(
        f"Stopped at step {step}: {problem}; its samples are {', '.join(ids)}; start again, and if it comes again, "
        f"look at these samples or lower optimizer.learning_rate; {saved}."
    )
