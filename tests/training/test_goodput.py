"""Every moment of a run counts once, as work or as one kind of loss, over all its starts."""

import json
from pathlib import Path

import jax
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynllava_jax.config.data import DataConfig
from dynllava_jax.training import goodput
from dynllava_jax.training.goodput import CHECKPOINT, COMPILE, DATA, KINDS, RESTART, WORK, Goodput, advice, measured

TRACE = "/jax/core/compile/jaxpr_trace_duration"


class Clock:
    """Of both kinds."""

    def __init__(self) -> None:
        self.now, self.wall = 1000.0, 5000.0

    def goes(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds

    def start(self, folder: Path, step: int = 0, began: float | None = None) -> Goodput:
        return Goodput(str(folder), step, began, lambda: self.now, lambda: self.wall)


def test_a_run_in_one_piece(tmp_path: Path) -> None:
    clock = Clock()
    began = clock.now
    clock.goes(5)  # loading
    times = clock.start(tmp_path, began=began)
    clock.goes(5)
    times.begin()
    clock.goes(30)
    times.compiled(TRACE, 20.0)
    times.begin()  # every batch says so
    with times.spent(DATA):
        clock.goes(8)
    clock.goes(40)
    with times.spent(CHECKPOINT):
        clock.goes(4)
    clock.goes(8)
    times.write()
    assert times.times.seconds == {WORK: 58, RESTART: 10, COMPILE: 20, DATA: 8, CHECKPOINT: 4}
    assert times.times.total == 100
    assert times.waiting() == pytest.approx(8 / 66)
    assert str(times.times) == (
        "goodput 58.0% of 0:01:40 in 1 start; lost: restart 10.0% (0:00:10), compile 20.0% (0:00:20), data 8.0% "
        "(0:00:08), checkpoint 4.0% (0:00:04)"
    )
    numbers = times.numbers()
    assert numbers["time/goodput"] == 0.58
    assert {name.removeprefix("time/") for name in numbers} == {"goodput", *KINDS}


def test_all_wait_for_the_process_whose_data_come_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first process had counted as work the time in which its step waited for another one's batch."""
    clock, others = Clock(), [0]
    monkeypatch.setattr(goodput.processes, "largest", lambda own: max(own, others[-1]))
    times = clock.start(tmp_path)
    times.begin()
    seconds = times.times.seconds
    # of each checkpoint: work and waiting here, waiting elsewhere, and what it all comes to
    for work, here, elsewhere, worked, waited in ((60, 2, 22, 40, 22), (60, 5, 3, 100, 27), (10, 0, 30, 100, 37)):
        others.append(elsewhere)
        clock.goes(work)
        with times.spent(DATA):
            clock.goes(here)
        times.agree()
        assert (seconds[WORK], seconds[DATA]) == (worked, waited)
        assert times.waiting() == pytest.approx(waited / (worked + waited))
        with times.spent(CHECKPOINT):
            clock.goes(1)
    times.write()
    assert times.times.total == clock.now - 1000.0


def test_what_a_kill_costs(tmp_path: Path) -> None:
    clock = Clock()
    times = clock.start(tmp_path)
    times.begin()
    clock.goes(100)
    times.saved(10)
    clock.goes(60)
    times.beat()  # the last sign of life
    clock.goes(20)
    clock.goes(600)  # nothing runs
    times = clock.start(tmp_path, 10, began=clock.now - 7)
    assert times.times.seconds[WORK] == 100
    assert times.times.seconds[RESTART] == 60
    assert times.times.down == 20 + 600 - 7
    times.begin()
    clock.goes(10)
    times.write()
    assert times.times.seconds == {WORK: 110, RESTART: 67, COMPILE: 0, DATA: 0, CHECKPOINT: 0}
    assert str(times.times).endswith("; 0:10:13 lay between the starts")
    assert " in 2 starts" in str(times.times)
    # Before any checkpoint, all was for nothing.
    assert clock.start(tmp_path, 0).times.seconds[WORK] == 0


def test_nested_compilations_count_once(tmp_path: Path) -> None:
    clock = Clock()
    times = clock.start(tmp_path)
    times.begin()
    clock.goes(10)
    times.compiled(TRACE, 2.0)
    clock.goes(1)
    times.compiled(TRACE, 1.0)
    clock.goes(1)
    times.compiled(TRACE, 6.0)  # in which both lay
    times.compiled("/jax/other", 9.0)
    assert times.times.seconds[COMPILE] == 6.0
    times.write()
    assert times.times.seconds[WORK] == 6.0


@given(st.lists(st.tuples(st.sampled_from([WORK, DATA, CHECKPOINT]), st.floats(0, 50), st.floats(0, 1))))
def test_no_moment_is_lost_or_counted_twice(
    tmp_path_factory: pytest.TempPathFactory, moments: list[tuple[str, float, float]]
) -> None:
    clock = Clock()
    times = clock.start(tmp_path_factory.mktemp("work"))
    times.begin()
    for kind, seconds, compiling in moments:
        with times.spent(kind):
            clock.goes(seconds)
            times.compiled(TRACE, seconds * compiling)
    times.numbers()
    assert times.times.total == pytest.approx(sum(seconds for _, seconds, _ in moments))
    assert all(value >= -1e-9 for value in times.times.seconds.values())


def test_a_clock_that_was_set_back(tmp_path: Path) -> None:
    clock = Clock()
    clock.start(tmp_path).write()
    clock.wall -= 3600
    assert clock.start(tmp_path, 0).times.down == 0.0


def test_a_damaged_account_costs_the_history_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / goodput.FILE).write_text('{"starts": 3')
    assert Clock().start(tmp_path).times.starts == 1
    assert "times are counted anew" in caplog.text
    (tmp_path / goodput.FILE).write_text('{"seconds": {"work": 7.0}, "starts": 3}')
    assert Clock().start(tmp_path, 5).times.starts == 4


def test_an_account_that_cannot_be_written_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Clock().start(tmp_path / "nowhere").write()
    assert "goodput.json could not be written" in caplog.text


def test_jax_tells_what_it_compiles(tmp_path: Path) -> None:
    with measured(str(tmp_path), 0) as times:
        times.begin()
        jax.jit(lambda x: x * 3.5)(2.0)
        assert times.times.seconds[COMPILE] > 0.0
    told = times.times.seconds[COMPILE]
    jax.jit(lambda x: x * 4.5)(2.0)
    assert times.times.seconds[COMPILE] == told
    assert json.loads((tmp_path / goodput.FILE).read_text())["starts"] == 1


def test_waiting_for_data_says_what_to_change() -> None:
    assert advice(0.05, DataConfig(), 96) is None
    sentence = advice(0.12, DataConfig(workers=4), 96)
    assert sentence is not None
    assert "wait for data 12% of the time: raise data.workers from 4 (the host has 96 cores)" in sentence
    sentence = advice(0.12, DataConfig(workers=8), 8)
    assert sentence is not None
    assert "dynllava data pack" in sentence
