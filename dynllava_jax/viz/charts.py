"""Comparisons as diagrams: what is gained for which cost, and what of each object was kept."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from dynllava_jax.viz.figure import COLOURS, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Point(NamedTuple):
    """One method: its cost, and what it reaches with the ends of its interval."""

    label: str
    cost: float
    value: float
    low: float
    high: float


def draw_points(points: Sequence[Point], cost: str, value: str, *, logarithmic: bool = False) -> "Figure":
    """Every method over its cost, with its interval; labels `cost` and `value` name the axes."""
    figure = new_figure(7.5, 4.5)
    axis = figure.subplots()
    for number, point in enumerate(points):
        ends = [[max(0.0, point.value - point.low)], [max(0.0, point.high - point.value)]]
        style = "os^Dv"[number // len(COLOURS) % 5]
        colour = COLOURS[number % len(COLOURS)]
        axis.errorbar([point.cost], [point.value], ends, fmt=style, color=colour, capsize=3, label=point.label)
    axis.set_xlabel(cost)
    axis.set_ylabel(value)
    if logarithmic:
        axis.set_yscale("log")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def draw_shares(
    kept: Mapping[str, float], chance: float, what: str = "share of its pixels in kept patches"
) -> "Figure":
    """A bar for each object: how much of it lies in kept patches, against what random tokens would keep.

    Args:
        kept: object -> share, from 0 to 1.
        chance: the keep rate.
        what: names the axis.
    """
    names = sorted(kept, key=kept.__getitem__)
    figure = new_figure(7.5, max(1.5, 0.2 * len(names)))
    axis = figure.subplots()
    axis.barh(names, [kept[name] for name in names], color=COLOURS[0])
    axis.axvline(chance, color=COLOURS[1], linestyle="--", label=f"random tokens: {chance:.0%}")
    axis.set_xlim(0, 1)
    axis.set_xlabel(what)
    axis.tick_params(axis="y", labelsize=7)
    axis.legend(fontsize=8, frameon=False, loc="lower right")
    return figure
