"""The result of a verification, as JSON and for people."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from dynllava_jax.verify.compare import CaseReport

_HEADER = f"{'case':34} {'arrays':>6} {'masked':>6}  {'worst array':42} {'error':>9} {'allowed':>9}"


@dataclasses.dataclass
class Report:
    """Verdicts by case, and the names of cases that nothing is claimed about."""

    cases: dict[str, CaseReport]
    unsupported: list[str]

    @property
    def ok(self) -> bool:
        """Everything that was asked for holds: an unsupported case was asked for and does not."""
        return not self.unsupported and all(case.ok for case in self.cases.values())

    def as_json(self) -> dict[str, Any]:
        cases = {name: case.as_json() for name, case in self.cases.items()}
        return {"cases": cases, "unsupported": self.unsupported}


def header() -> str:
    return f"{_HEADER}\n{'-' * len(_HEADER)}----"


def case_line(name: str, case: CaseReport | None) -> str:
    """One case: how many arrays, how many padded rows were left out, the array nearest to its tolerance."""
    if case is None:
        return f"{name:34} {'':6} {'':6}  unsupported: not verified by this version"
    worst = case.worst
    if worst is None:
        return f"{name:34} {0:6d}"
    array, row = worst
    error = "-" if row.max_error is None else f"{row.max_error:.1e}"
    verdict = "ok" if case.ok else "FAIL"
    return (
        f"{name:34} {len(case.arrays):6d} {case.rows_masked:6d}  {array:42} {error:>9} {row.tolerance:9.1e}  {verdict}"
    )


def closing(report: Report) -> Iterator[str]:
    """What failed, what was not compared and why, and the sum."""
    for name, case in report.cases.items():
        if case.problem:
            yield f"FAIL  {name}: none of its {len(case.arrays)} arrays was compared: {case.problem}"
            continue
        for array, row in case.arrays.items():
            if not row.ok:
                bound = case.platform_bound(row)
                yield f"FAIL  {name}: {array}: {row.problem or _spell(row.max_error, row.tolerance, bound)}"
    for name, case in report.cases.items():
        for reason in dict.fromkeys(case.not_compared.values()):
            arrays = [array for array, why in case.not_compared.items() if why == reason]
            yield f"not compared  {name}: {', '.join(arrays)}: {reason}"
    good = sum(case.ok for case in report.cases.values())
    arrays = sum(case.compared for case in report.cases.values())
    text = f"{good} of {len(report.cases)} cases hold ({arrays} arrays compared)"
    if report.unsupported:
        text += f"; asked for but not supported: {', '.join(report.unsupported)}"
    yield text


def _spell(error: float | None, tolerance: float, bound: float | None) -> str:
    text = f"error {error:.2e} exceeds {tolerance:.2e}"
    if bound is not None and error is not None:
        text += f" ({'within' if error <= bound else 'beyond'} the {bound:.2e} that this platform's float32 explains)"
    return text
