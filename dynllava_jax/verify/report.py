"""Verdicts for people and for programs."""

from collections.abc import Mapping, Sequence
from typing import Any

from dynllava_jax.verify.compare import CaseReport, Row

HEADER = f"{'case':<34} {'arrays':>6}  {'worst array':<36} {'error':>9} {'tolerance':>9}  verdict"


def line(name: str, report: CaseReport) -> str:
    """One case as a line of the table, and a line for every array that does not hold."""
    worst = report.worst
    text = f"{name:<34} {len(report.arrays):>6}  "
    if worst is not None:
        text += f"{worst[0]:<36} {_error(worst[1]):>9} {worst[1].tolerance:>9.2g}  "
    text += "ok" if report.ok else "DOES NOT HOLD"
    details = [
        f"    {array}: error {_error(row)}, tolerance {row.tolerance:.2g}{f' ({row.problem})' if row.problem else ''}"
        for array, row in report.arrays.items()
        if not row.ok
    ]
    return "\n".join([text, *details])


def summary(reports: Mapping[str, CaseReport], unsupported: Sequence[str]) -> str:
    """The last lines: how many hold, what was masked and left out, what is not supported."""
    held = sum(report.ok for report in reports.values())
    arrays = sum(len(report.arrays) for report in reports.values())
    masked = sum(report.rows_masked for report in reports.values())
    lines = [f"{held} of {len(reports)} cases hold: {arrays} arrays compared, {masked} rows of padding masked"]
    left = {array: reason for report in reports.values() for array, reason in report.not_compared.items()}
    for reason in dict.fromkeys(left.values()):
        names = ", ".join(array for array, why in left.items() if why == reason)
        lines.append(f"not compared: {names}: {reason}")
    if unsupported:
        lines.append(f"unsupported: {', '.join(unsupported)}")
    return "\n".join(lines)


def as_json(reports: Mapping[str, CaseReport], unsupported: Sequence[str]) -> dict[str, Any]:
    """`{"cases": {name: {"ok", "rows_masked", "arrays", "not_compared"}}, "unsupported": [names]}`."""
    return {
        "cases": {name: report.as_json() for name, report in reports.items()},
        "unsupported": list(unsupported),
    }


def _error(row: Row) -> str:
    return "—" if row.max_error is None else f"{row.max_error:.2g}"
