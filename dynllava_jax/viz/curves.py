"""The curves of a training run, from its `metrics.jsonl`."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from dynllava_jax.errors import InputError, shown
from dynllava_jax.viz.figure import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
"""JSON: numbers, and null for what is none."""

_PANELS = (  # title, what is drawn in it
    ("cross-entropy", ("ce", "eval/loss")),
    ("keep rates in training", ("image_keep_rate", "output_keep_rate", "instruct_keep_rate")),
    ("Gumbel temperature", ("tau",)),
    ("tokens a second", ("tokens_per_second",)),
)


def read_metrics(workdir: epath.PathLike) -> list[Record]:
    """The records of `WORKDIR/metrics.jsonl` in order; a last line that is still being written does not count.

    Raises:
        InputError: no such file, no record in it, or a line that is none.
    """
    file = epath.Path(workdir) / "metrics.jsonl"
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{file} cannot be read: {why}; give the work folder of `dynllava train`.") from error
    records: list[Record] = []
    for number, line in enumerate(lines, 1):
        if not line.endswith("\n"):
            break
        try:
            record = json.loads(line)
            if not isinstance(record, dict) or not _is_number(record.get("step")):
                raise ValueError("it has no number as its step")
            for key in (key for _, names in _PANELS for key in names):
                if record.get(key) is not None and not _is_number(record[key]):
                    raise ValueError(f"its {key} is no number but {shown(record[key])}")
        except (ValueError, RecursionError) as error:
            raise InputError(
                f"{file} line {number} is no record of a step: {error}; remove the line, or copy the file again."
            ) from error
        records.append(record)
    if not records:
        raise InputError(f"{file} holds no step yet.")
    return records


def draw_curves(records: Sequence[Record]) -> "Figure":
    """One diagram for each kind of figure that the run noted, over its steps."""
    panels = []
    for title, names in _PANELS:
        found = {name: points for name in names if (points := _points(records, name))}
        if found:
            panels.append((title, found))
    if not panels:
        raise InputError("metrics.jsonl holds none of the figures that are drawn (ce, keep rates, tau, speed).")
    figure = new_figure(7.5, 2.2 * len(panels))
    axes = figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0]
    for axis, (title, found) in zip(axes, panels, strict=True):
        for colour, (name, points) in zip(COLOURS, found.items(), strict=False):
            style = "o-" if name.startswith("eval/") else "-"
            axis.plot(*zip(*points, strict=True), style, color=colour, label=name, linewidth=1.2, markersize=4)
        axis.set_title(title, loc="left", fontsize=10)
        axis.set_ylim(bottom=0)
        # Beside the title: wherever it stood among the curves, some run would go through it.
        axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=len(found), fontsize=8, frameon=False)
        axis.grid(alpha=0.3)
    axes[-1].set_xlabel("step")
    return figure


def _is_number(value: Any) -> bool:
    """Whether a float can hold it."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _points(records: Sequence[Record], name: str) -> list[tuple[float, float]]:
    points = []
    for record in records:
        step, value = record["step"], record.get(name)
        if step is not None and value is not None:
            points.append((float(step), float(value)))
    return points
