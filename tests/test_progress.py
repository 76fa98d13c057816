"""Long work tells how far it is, on a terminal and in a log file."""

import sys

import pytest

from dynllava_jax import progress
from dynllava_jax.progress import Progress


def test_off_a_terminal_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    with Progress("packing", "sample") as packing:
        packing.advance()  # before it is known how much there is
        packing.start(1000, done=100)
        for _ in range(300):
            now += 0.5
            packing.advance()
    assert capsys.readouterr().err.splitlines() == [
        "packing: 220 of 1000 (22 %), 2.00sample/s, 06:30 left",
        "packing: 340 of 1000 (34 %), 2.00sample/s, 05:30 left",
    ]


def test_short_work_says_nothing_in_a_log_file(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("reading", "B", scaled=True) as reading:
        reading.start(10)
        reading.advance(10)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_a_bar(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress("converting", "B", scaled=True) as converting:
        converting.start(2_000_000)
        converting.advance(2_000_000)
    assert "converting: 100%" in capsys.readouterr().err
