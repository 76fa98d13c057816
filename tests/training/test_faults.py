"""What breaks around a run: nothing is lost in silence, the message says what to do, the same command goes on.

`docs/faults.md` lists them with their tests; the lost host is in `test_processes.py`, damaged checkpoints in
`test_checkpoint.py`.
"""

import contextlib
import json
import multiprocessing
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from dynllava_jax.data.json_source import JsonSource
from dynllava_jax.data.pack import pack
from dynllava_jax.errors import InputError
from dynllava_jax.training import loop
from dynllava_jax.training.record import Recorder
from dynllava_jax.training.step import Trainer
from tests.training.permissions import read_only
from tests.training.runs import command, records, run, saved

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_program")]

RUN = ("--config.steps=6", "--config.checkpoint.every=2", "--config.log.health_every=0", "--config.data.prefetch=1")
LONG = 16
"""More steps than could be read ahead by the processes that read."""


@pytest.fixture
def start(data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Any:
    """Starts the run in `tmp_path/run`; exit status and last line."""

    def start(*more: str) -> tuple[int, str]:
        status = run(data, tmp_path / "run", *RUN, *more, checkpoint=checkpoint)
        return status, capsys.readouterr().err.splitlines()[-1]

    return start


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Does something when a step was begun."""

    def at(step: int, what: Callable[[], object]) -> None:
        add = Recorder.add

        def added(self: Recorder, begun: int, metrics: Any) -> None:
            if begun == step:
                what()
            add(self, begun, metrics)

        monkeypatch.setattr(Recorder, "add", added)

    return at


def assert_whole(folder: Path, start: Any, *more: str, steps: int = 6) -> None:
    """The same command comes to the end, with every step once."""
    status, line = start(*more)
    assert (status, line) == (0, f"dynllava: step {steps} of {steps} is done and saved in {folder / 'run'}")
    assert [record["step"] for record in records(folder / "run")] == list(range(1, steps + 1))
    assert saved(folder / "run") == [steps - 2, steps]


def await_checkpoint(folder: Path, step: int) -> None:
    while not (folder / "run" / "checkpoints" / str(step) / "hashes.json").exists():
        time.sleep(0.01)


def test_a_disk_that_is_full_while_saving(start: Any, at: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill() -> None:
        await_checkpoint(tmp_path, 2)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

    at(4, fill)
    try:
        status, line = start()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 2
    assert f"Checkpoint {tmp_path / 'run' / 'checkpoints' / '4'} could not be written: " in line
    assert line.endswith("has room and may be written, then the same command goes on from step 2.")
    assert saved(tmp_path / "run") == [2]
    monkeypatch.undo()
    assert_whole(tmp_path, start)


def test_a_checkpoint_folder_that_becomes_read_only(
    start: Any, at: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run" / "checkpoints"
    with contextlib.ExitStack() as stack:

        def close() -> None:
            await_checkpoint(tmp_path, 2)
            stack.enter_context(read_only(folder))

        at(3, close)
        status, line = start()
        assert status == 2
        assert f"Checkpoint {folder / '4'} could not be written: " in line
        assert "ermission denied" in line
        assert line.endswith("has room and may be written, then the same command goes on from step 2.")
        assert saved(tmp_path / "run") == [2]
        status, line = start()
        assert (status, line) == (
            2,
            f"dynllava: error: {folder} cannot be written: Permission denied; nothing could be saved there.",
        )
    monkeypatch.undo()
    assert_whole(tmp_path, start)


def test_data_that_are_cut_short_in_mid_run(start: Any, at: Any, data: Path, tmp_path: Path) -> None:
    whole = data.read_bytes()
    at(1, lambda: os.truncate(data, 100))
    status, line = start()
    step = saved(tmp_path / "run")[-1]
    assert status == 2
    assert "data file cut short" in line
    assert line.endswith(f"All {step} steps before are saved: the same command goes on from there.")
    assert records(tmp_path / "run")[-1]["step"] == step < 6
    data.write_bytes(whole)
    assert_whole(tmp_path, start)


def test_packed_data_that_are_cut_short_in_mid_run(
    start: Any, at: Any, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "packed"
    pack(JsonSource.open(str(data), str(data.parent)), str(folder), shard_bytes=20_000)
    shards = {file: file.read_bytes() for file in folder.glob("*.arrayrecord")}
    assert len(shards) > 1

    def cut() -> None:
        for file in shards:
            os.truncate(file, 100)

    at(1, cut)
    packed = (f"--config.data.source={folder}", "--config.data.images=None")
    status, line = start(*packed)
    step = saved(tmp_path / "run")[-1]
    assert status == 2
    assert "damaged shard" in line
    assert line.endswith(f"All {step} steps before are saved: the same command goes on from there.")
    assert records(tmp_path / "run")[-1]["step"] == step < 6
    monkeypatch.undo()
    status, line = start(*packed)
    assert status == 2
    assert re.search(r"packed/\S+ has \d+ bytes instead of \d+; copy it again, or pack the data again\.$", line)
    for file, whole in shards.items():
        file.write_bytes(whole)
    assert_whole(tmp_path, start, *packed)


def test_held_out_data_that_break_off(start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def evaluate(*args: Any) -> Any:
        raise InputError("Sample 'x': unreadable image.")

    monkeypatch.setattr(loop, "_evaluate", evaluate)
    monkeypatch.setattr(loop, "due", lambda step, config, *, last, ending: loop.Due(False, step == 3, last))
    status, line = start()
    assert (status, saved(tmp_path / "run")) == (2, [3])
    assert line.endswith("unreadable image. All 3 steps before are saved: the same command goes on from there.")


def test_a_reading_process_that_is_killed(start: Any, at: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def kill() -> None:
        worker = multiprocessing.active_children()[0]
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)

    at(2, kill)
    more = (f"--config.steps={LONG}", "--config.data.workers=2")
    status, line = start(*more)
    step = saved(tmp_path / "run")[-1]
    assert status == 75
    assert line.endswith(
        f"A process that reads samples ended with exit code -9 before step {step}; if memory or /dev/shm ran out, "
        f"lower data.workers. All {step} steps before are saved: the same command goes on from there."
    )
    assert 2 <= step < LONG
    assert not multiprocessing.active_children()
    monkeypatch.undo()
    assert_whole(tmp_path, start, *more, steps=LONG)


def test_sigterm_in_the_middle_of_a_step(start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step, told = Trainer.step, []

    def stepped(self: Trainer, *args: Any) -> Any:
        told.append(1)
        if len(told) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, *args)

    monkeypatch.setattr(Trainer, "step", stepped)
    status, line = start()
    assert (status, line) == (75, f"dynllava: step 3 of 6 is done and saved in {tmp_path / 'run'}")
    assert saved(tmp_path / "run") == [2, 3]
    monkeypatch.undo()
    assert_whole(tmp_path, start)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_before_there_is_anything_to_save(
    number: signal.Signals, data: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """It had ended the process as the system does, with a status that says nothing of starting again."""
    program = (
        "import os, signal, sys, time\n"
        "from dynllava_jax.training import loop\n"
        f"loop.prepare = lambda config: (os.kill(os.getpid(), {int(number)}), time.sleep(60))\n"
        "from dynllava_jax.cli.main import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    argv = command(data, tmp_path / "run", *RUN, checkpoint=checkpoint)
    done = subprocess.run([sys.executable, "-c", program, *argv], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (75, f"dynllava: {number.name}: nothing to save\n")
    assert not (tmp_path / "run").exists()


def test_two_runs_in_one_work_folder(start: Any, at: Any, data: Path, checkpoint: Path, tmp_path: Path) -> None:
    program = [sys.executable, "-m", "dynllava_jax.cli.main"]
    argv = [*program, *command(data, tmp_path / "run", *RUN, checkpoint=checkpoint)]
    second: list[subprocess.CompletedProcess[str]] = []
    at(2, lambda: second.append(subprocess.run(argv, capture_output=True, text=True, check=False)))
    assert_whole(tmp_path, start)
    assert second[0].returncode == 2
    line = second[0].stderr.splitlines()[-1]
    assert f"{tmp_path / 'run'} is in use by process {os.getpid()} on " in line
    assert line.endswith("wait until that run has ended, stop it, or give this one another --workdir.")


def test_a_clock_that_goes_backwards(start: Any, at: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, calls = time.time(), iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: now - 3600.0 * next(calls))
    at(3, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    assert start()[0] == 75
    assert saved(tmp_path / "run") == [2, 3]
    status, _ = start()
    assert status == 0
    assert all(record["seconds"] > 0 for record in records(tmp_path / "run"))
    times = json.loads((tmp_path / "run" / "goodput.json").read_text())
    assert times["down"] == 0.0
    assert times["starts"] == 2
    assert min(times["seconds"].values()) >= 0.0


def test_a_gradient_that_is_no_number(start: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of its step is a number still; what the step made of the parameters must not be saved."""
    gradients = Trainer._gradients

    def broken(self: Trainer, params: Any, frozen: Any, parts: Any, tau: Any) -> Any:
        found, metrics = gradients(self, params, frozen, parts, tau)
        path = next(path for path in found if path.startswith("projector/"))
        first = (0,) * found[path].ndim
        nan = jnp.where(tau < 0.9, jnp.nan, 0.0)  # from the second step on
        return found | {path: found[path].at[first].add(nan)}, metrics

    monkeypatch.setattr(Trainer, "_gradients", broken)
    monkeypatch.setattr(loop, "Trainer", Trainer)
    status, line = start("--config.steps=2")
    assert status == 1
    assert "Stopped at step 2: the gradient of projector is nan; its samples are s" in line
    assert line.endswith("there is no checkpoint yet.")
    assert saved(tmp_path / "run") == []
    assert [record["loss"] > 0 for record in records(tmp_path / "run")] == [True, True]


def test_the_page_names_tests_that_there_are() -> None:
    tests = Path(__file__).parents[1]
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (tests.parent / "docs" / "faults.md").read_text())
    assert len(named) > 20
    for file, test in named:
        (path,) = (path for folder in ("training", "data") if (path := tests / folder / file).exists())
        assert f"\ndef {test}(" in path.read_text()
