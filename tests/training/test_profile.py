"""The profiler's window."""

from pathlib import Path

import jax
import pytest

from dynllava_jax.training.profile import profiler


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(jax.profiler, "start_trace", lambda folder: found.append(f"start {folder}"))
    monkeypatch.setattr(jax.profiler, "stop_trace", lambda: found.append("stop"))
    return found


def run(window: tuple[int, int] | None, first: int, last: int, calls: list[str]) -> list[str]:
    with profiler("work", window) as trace:
        for step in range(first, last + 1):
            trace.before(step, ())
            calls.append(str(step))
    return calls


def test_the_steps_asked_for_are_traced(calls: list[str]) -> None:
    assert run((2, 2), 1, 5, calls) == ["1", "start work/profile", "2", "3", "stop", "4", "5"]


def test_a_window_ends_with_the_run(calls: list[str]) -> None:
    assert run((3, 9), 2, 4, calls) == ["2", "start work/profile", "3", "4", "stop"]


@pytest.mark.parametrize("window", [None, (1, 2)])
def test_steps_outside_are_not(window: tuple[int, int] | None, calls: list[str]) -> None:
    assert run(window, 3, 4, calls) == ["3", "4"]


def test_a_real_trace_is_written(tmp_path: Path) -> None:
    with profiler(str(tmp_path), (1, 1)) as trace:
        trace.before(1, ())
        trace.before(2, jax.numpy.ones(2) + 1)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
