"""Recorded and computed arrays side by side."""

import dataclasses
import math
from typing import Any

import numpy as np

from dynllava_jax.verify import halves
from dynllava_jax.verify.cases import Case
from dynllava_jax.verify.computed import Computed
from dynllava_jax.verify.tolerance import PLATFORM_FACTOR, Platform, Tolerance, tolerance


@dataclasses.dataclass(frozen=True)
class Row:
    """One array's verdict.

    Attributes:
        max_error: the largest error; None when the two cannot be subtracted, `problem` says why.
        tolerance: the largest error allowed.
        ok: the verdict.
        problem: what is wrong besides the size of the error.
        computed: whether there was anything to compare with.
    """

    max_error: float | None
    tolerance: float
    ok: bool
    problem: str = ""
    computed: bool = True

    @property
    def ratio(self) -> float:
        """Error in units of the tolerance; infinite when exactness was missed."""
        if self.max_error is None:
            return math.inf
        return self.max_error / self.tolerance if self.tolerance else (0.0 if self.ok else math.inf)


@dataclasses.dataclass(frozen=True)
class CaseReport:
    """One case's verdicts; `platform` is where it was computed, `problem` why nothing of it was."""

    arrays: dict[str, Row]
    not_compared: dict[str, str]
    rows_masked: int
    platform: Platform
    problem: str = ""

    @property
    def ok(self) -> bool:
        return all(row.ok for row in self.arrays.values())

    @property
    def compared(self) -> int:
        """How many arrays and facts there was something to compare with."""
        return sum(row.computed for row in self.arrays.values())

    @property
    def worst(self) -> tuple[str, Row] | None:
        """The array nearest to its tolerance, or farthest beyond it."""
        return max(self.arrays.items(), key=lambda item: item[1].ratio, default=None)

    def platform_bound(self, row: Row) -> float | None:
        """What float32 on this platform explains; None where the tolerance is all there is."""
        factor = PLATFORM_FACTOR[self.platform]
        return None if factor == 1.0 else factor * row.tolerance

    def as_json(self) -> dict[str, Any]:
        return {
            "ok": self.ok,
            "rows_masked": self.rows_masked,
            "arrays": {name: self._row_json(row) for name, row in self.arrays.items()},
            "not_compared": self.not_compared,
        }

    def _row_json(self, row: Row) -> dict[str, Any]:
        extra: dict[str, Any] = {"problem": row.problem} if row.problem else {}
        if (bound := self.platform_bound(row)) is not None:
            extra["platform_bound"] = bound
        return {"max_error": row.max_error, "tolerance": row.tolerance, "ok": row.ok, **extra}


def compare(case: Case, computed: Computed, platform: Platform, dtype: str = "float32") -> CaseReport:
    """Every output of the case and every fact of it, unless the case's code gave a reason not to.

    Args:
        case: what was recorded.
        computed: what our model gave.
        platform: where.
        dtype: in which the recording was computed.
    """
    if dtype != "float32":
        halves.excuse(case, computed, dtype)
    compared = [name for name in case.outputs if name not in computed.not_compared]
    rows = {name: _compare_array(case, computed, name, dtype) for name in compared}
    for name, fact in case.info_rows().items():
        rows[name] = _compare_fact(case.name, name, fact, computed.info.get(name))
    skipped = {name: reason for name, reason in computed.not_compared.items() if name in case.outputs}
    return CaseReport(rows, skipped, computed.rows_masked, platform)


def failed(case: Case, problem: str, platform: Platform) -> CaseReport:
    """The report of a case that our code refused to run."""
    limits = {name: tolerance(case.name, name, value).limit for name, value in case.outputs.items()}
    rows = {name: Row(None, limit, False, problem, computed=False) for name, limit in limits.items()}
    return CaseReport(rows, {}, 0, platform, problem)


def _compare_array(case: Case, computed: Computed, name: str, dtype: str) -> Row:
    reference = case.outputs[name]
    if name not in computed.values:
        return Row(None, tolerance(case.name, name, reference).limit, False, "not computed", computed=False)
    values = computed.values[name]
    if values.shape != reference.shape:
        problem = f"shape {list(values.shape)} instead of {list(reference.shape)}"
        return Row(None, tolerance(case.name, name, reference).limit, False, problem)
    if (masked := computed.masked.get(name)) is not None:
        values, reference = values[~masked], reference[~masked]
    return _row(tolerance(case.name, name, reference, dtype), values, reference)


def _compare_fact(case: str, name: str, recorded: Any, ours: Any) -> Row:
    if ours is None:
        return Row(None, 0.0, False, "not computed", computed=False)
    if isinstance(recorded, dict):
        return _compare_numbers(case, name, recorded, ours)
    if _unordered(ours) == _unordered(recorded):
        return Row(0.0, 0.0, True)
    return Row(None, 0.0, False, f"{ours} instead of {recorded}")


def _compare_numbers(case: str, name: str, recorded: dict[str, Any], ours: dict[str, Any]) -> Row:
    """Named numbers such as `grad_norms`, under the tolerance of an array of them; null stands for none."""
    wrong = [key for key, value in recorded.items() if (value is None) != (ours.get(key) is None)]
    if wrong:
        return Row(None, 0.0, False, f"a number on one side only for {', '.join(wrong[:5])}")
    known = [key for key, value in recorded.items() if value is not None]
    values, reference = (np.array([side[key] for key in known], np.float64) for side in (ours, recorded))
    return _row(tolerance(case, name, reference), values, reference)


def _row(allowed: Tolerance, values: np.ndarray, reference: np.ndarray) -> Row:
    error = allowed.error(values, reference)
    if not math.isfinite(error):
        return Row(None, allowed.limit, False, "not a finite number everywhere")
    return Row(error, allowed.limit, error <= allowed.limit)


def _unordered(value: Any) -> Any:
    """Lists of names are sets: their order is the recording's business."""
    if isinstance(value, dict):
        return {key: _unordered(item) for key, item in value.items()}
    if isinstance(value, list):
        items = [_unordered(item) for item in value]
        return frozenset(items) if items and all(isinstance(item, str) for item in items) else items
    return value
