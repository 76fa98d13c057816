"""Waiting for data counts from when the devices have nothing left to do, and is warned of once."""

from pathlib import Path
from typing import Any, cast

import pytest

from dynllava_jax.config.training import TrainConfig
from dynllava_jax.errors import CheckError, InputError, InterruptedRunError
from dynllava_jax.training import loop
from dynllava_jax.training.feed import DeviceBatch, Feed
from dynllava_jax.training.goodput import DATA, WORK
from dynllava_jax.training.record import Recorder
from dynllava_jax.training.supply import Supply
from tests.training.test_goodput import Clock

BATCH = DeviceBatch(0, cast(Any, None), (), ())


class FakeFeed(Feed):
    """Batches that take so many seconds each."""

    def __init__(self, clock: Clock, seconds: list[float], error: Exception | None = None) -> None:
        self._clock, self._left, self._error = clock, list(seconds), error

    @property
    def ready(self) -> bool:
        return bool(self._left) and self._left[0] == 0

    def __next__(self) -> DeviceBatch:
        if not self._left:
            raise self._error or StopIteration
        self._clock.goes(self._left.pop(0))
        return BATCH


class FakeRecorder(Recorder):
    """Devices that are busy for two seconds more whenever they are waited for."""

    def __init__(self, clock: Clock) -> None:
        self._clock, self.waits = clock, 0

    def settle(self) -> None:
        self._clock.goes(2)
        self.waits += 1


def supply(folder: Path, seconds: list[float], error: Exception | None = None) -> tuple[Supply, Any, FakeRecorder]:
    clock = Clock()
    times, recorder = clock.start(folder), FakeRecorder(clock)
    return Supply(FakeFeed(clock, seconds, error), recorder, times), times, recorder


def test_only_devices_without_work_wait(tmp_path: Path) -> None:
    made, times, recorder = supply(tmp_path, [30, 0, 5, 0])
    assert list(made) == [BATCH] * 4
    assert made.broken is None
    times.write()
    assert times.times.seconds[DATA] == 5  # not the first batch, which starting waits for
    assert recorder.waits == 2  # for the slow batch, and for the end
    assert times.times.seconds[WORK] == 4


@pytest.mark.parametrize(
    ("error", "kind"), [(InputError("Bad."), InputError), (CheckError("Dead."), InterruptedRunError)]
)
def test_what_breaks_ends_the_supply(tmp_path: Path, error: Exception, kind: type[Exception]) -> None:
    made, *_ = supply(tmp_path, [0, 0], error)
    assert list(made) == [BATCH] * 2
    assert made.broken is error
    told = made.error((2, 4))
    assert type(told) is kind
    assert str(told) == f"{error} All 4 steps before are saved: the same command goes on from there."
    assert str(made.error(())) == f"{error} There is no checkpoint yet."


def test_the_warning_comes_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, times, _ = supply(tmp_path, [0, 40, 0])
    batches = iter(made)
    run = object.__new__(loop.Run)
    object.__setattr__(run, "config", TrainConfig())
    next(batches)
    loop._advise(run, times)
    assert capsys.readouterr().err == ""
    next(batches)
    times._since -= 30  # of work
    loop._advise(run, times)
    loop._advise(run, times)
    assert capsys.readouterr().err.count("warning: The devices wait for data 5") == 1
