"""How far from the recording a number may be."""

from typing import Literal, NamedTuple, get_args

import numpy as np

Platform = Literal["cpu", "gpu", "tpu"]
PLATFORMS: tuple[Platform, ...] = get_args(Platform)

PLATFORM_FACTOR: dict[Platform, float] = {"cpu": 1.0, "gpu": 10.0, "tpu": 100.0}
"""Accelerator bounds, as multiples of the tolerance.

An accelerator sums in another order, and its exp and erf are approximations. The bound is shown beside the tolerance
to tell rounding from a mistake and never decides: on every platform `ok` means the tolerance.
"""

_VALUE, _GRADIENT = 2e-5, 1e-4
_SCHEDULE = 1e-6
_TRAJECTORY = 1e-4


LOGITS: dict[str, float] = {"float32": _VALUE, "float16": 5e-3, "bfloat16": 4e-2}
"""What computing in a dtype may change logits by, as a share of the largest: ten roundings or so of the half ones."""


class Tolerance(NamedTuple):
    """The largest error allowed anywhere in an array; `relative` ones are divided by the recorded value."""

    limit: float
    relative: bool = False

    def error(self, values: np.ndarray, reference: np.ndarray) -> float:
        """The largest error; NaN if anything is not a number. Nothing to compare is no error."""
        if not reference.size:
            return 0.0
        values, reference = values.astype(np.float64), reference.astype(np.float64)
        with np.errstate(invalid="ignore"):  # what is lost between infinities is NaN, and found
            difference = np.where(values == reference, 0.0, np.abs(values - reference))  # equal infinities are equal
            if self.relative:
                difference = difference / np.where(reference == 0, 1.0, np.abs(reference))
        return float(np.max(difference))


def tolerance(case: str, array: str, reference: np.ndarray, dtype: str = "float32") -> Tolerance:
    """What a recorded output of a case allows (the manifest's `suggested_tolerance`, and what it leaves open).

    Integers and booleans are exact; activations, logits and losses 2e-5 of the largest value, or of 1 if that is
    more; gradients 1e-4 of the largest; schedules (learning rate, Gumbel temperature) relative 1e-6; a trajectory's
    losses and gradient norms relative 1e-4, its parameters absolute 1e-4. What was recorded in a half dtype may be as
    far away as `LOGITS` says.
    """
    if not np.issubdtype(reference.dtype, np.floating) or not reference.size:
        return Tolerance(0.0)
    # An infinity must be met, but allows its neighbours nothing.
    largest = float(np.max(np.abs(reference), where=np.isfinite(reference), initial=0.0))
    leaf = array.rsplit(".", 1)[-1]
    if leaf == "lr" or leaf.startswith(("lr_", "gumbel_tau")):
        return Tolerance(_SCHEDULE, relative=True)
    if case.startswith("14_"):
        return Tolerance(_TRAJECTORY, relative=not array.startswith("final."))
    if array.startswith("grad.") or leaf.startswith("grad_"):
        return Tolerance(_GRADIENT * largest)
    return Tolerance(LOGITS[dtype] * max(1.0, largest))
