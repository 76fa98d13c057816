"""The curves of a run are those of its records."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from dynllava_jax.errors import InputError
from dynllava_jax.viz.curves import draw_curves, read_metrics
from dynllava_jax.viz.figure import save

RECORDS = [
    {"step": 1, "ce": 3.0, "image_keep_rate": 0.5, "tau": 1.0},
    {"step": 2, "ce": None, "image_keep_rate": 0.4, "tau": 0.5},
    {"step": 3, "ce": 1.0, "image_keep_rate": 0.3, "tau": 0.1, "eval/loss": 1.5},
]


def write(folder: Path, text: str) -> Path:
    (folder / "metrics.jsonl").write_text(text)
    return folder


def test_every_figure_that_was_noted_is_drawn(tmp_path: Path) -> None:
    text = "".join(json.dumps(record) + "\n" for record in RECORDS)
    figure = draw_curves(read_metrics(write(tmp_path, text + '{"step": 4, "c')))
    lines = [line for axis in figure.axes for line in axis.get_lines()]
    drawn = {line.get_label(): np.asarray(line.get_xydata()).tolist() for line in lines}
    assert drawn["ce"] == [[1, 3], [3, 1]]
    assert drawn["eval/loss"] == [[3, 1.5]]
    assert set(drawn) == {"ce", "eval/loss", "image_keep_rate", "tau"}
    for name in ("a.svg", "b.svg"):
        save(draw_curves(read_metrics(tmp_path)), tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "holds no step"), ("[1]\n", "line 1 is no record"), ('{"ce": 1}\n', "line 1"), ("{\n", "line 1")],
)
def test_bad_metrics(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        read_metrics(write(tmp_path, text))


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"metrics.jsonl cannot be read.*work folder"):
        read_metrics(tmp_path)
    with pytest.raises(InputError, match="none of the figures"):
        draw_curves([{"step": 1}])


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"dynllava_jax\[show\]"):
        draw_curves(RECORDS)


def test_no_legend_stands_on_a_curve() -> None:
    figure = draw_curves([{"step": step, "tokens_per_second": 1000.0, "ce": 1.0} for step in range(9)])
    figure.draw_without_rendering()
    for axis in figure.axes:
        legend = axis.get_legend()
        assert legend is not None
        assert not legend.get_window_extent().overlaps(axis.get_window_extent())
