"""How a training process ended, in one line and a status that is started again on."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from dynllava_jax.training import guard
from dynllava_jax.training.guard import LOST, explain

FATAL = """\
F1126 04:10:25.558661   25985 client.h:80] Terminating process because the JAX distributed service detected fatal \
errors. This most likely indicates that another task died; see the other task logs for more details. absl::Status: \
UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):
1
{more}The tasks have crashed. Check the task logs for an earlier error, or scheduler events to debug further.

RPC: /xla.coordination.CoordinationService/PollForError
*** Check failure stack trace: ***
    @     0x7fbf3cb40634  absl::lts_20260107::log_internal::LogMessage::SendToLog()
"""
UNREACHABLE = """\
F1126 04:10:35.404846   26615 client.h:80] Terminating process because the JAX distributed service detected fatal \
errors. absl::Status: UNAVAILABLE: Failed to send RPC to coordination service. Either the leader task was preempted/\
died/restarted unexpectedly or this task is experiencing network issues.
"""
APART = """\
F1127 23:59:45.950243   26411 client.h:80] Terminating process because the JAX distributed service detected fatal \
errors. This most likely indicates that another task died. absl::Status: DEADLINE_EXCEEDED: Deadline Exceeded

RPC: /xla.coordination.CoordinationService/RegisterTask
*** Check failure stack trace: ***
"""
HOSTS = ("alpha", "beta", "gamma")


@pytest.mark.parametrize("status", [0, 1, 2, 75, 130])
def test_an_end_that_was_told_needs_no_words(status: int) -> None:
    assert explain(status, "", HOSTS) is None


def test_the_lost_are_named() -> None:
    line = explain(-6, FATAL.format(more=""), HOSTS)
    assert line is not None
    assert line.startswith(
        "process 1 on beta was lost (killed or hung, or its host went away): the run stops on all hosts; "
    )
    assert line.endswith("the launch scripts start it again, and it goes on from the last checkpoint.")
    line = explain(-6, FATAL.format(more="/job:jax_worker/replica:0/task:2\n"), HOSTS)
    assert line is not None
    assert line.startswith("process 1 on beta, process 2 on gamma were lost")
    line = explain(-6, UNREACHABLE, ())
    assert line is not None
    assert line.startswith("process 0 was lost")


def test_nobody_is_called_lost_who_never_came() -> None:
    """Process 0, which waited for the others, had said that process 0 was lost."""
    line = explain(-6, APART, ())
    assert line is not None
    assert line.startswith("not all processes of the run came together in time (one was not started, or was lost ")


def test_a_killed_child_is_told_of() -> None:
    line = explain(-9, "", HOSTS)
    assert line is not None
    assert line.startswith("the training process ended with SIGKILL, mostly for want of memory: ")
    assert "ended with status 134" in (explain(134, "", ()) or "")


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A script that the guard starts in the place of Python."""
    script = tmp_path / "child"
    script.touch(0o755)
    monkeypatch.setattr(guard.sys, "executable", str(script))
    return script


def test_the_page_of_frames_becomes_one_line(child: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fatal").write_text("step 3/9  loss 2.5\n" + FATAL.format(more=""))
    child.write_text(
        f'#!/bin/sh\necho \'["alpha", "beta"]\' > "${guard.PEERS}"\ncat {tmp_path}/fatal >&2\nkill -ABRT $$\n'
    )
    assert guard.guard(["train"]) == LOST
    lines = capfd.readouterr().err.splitlines()
    assert lines[0] == "step 3/9  loss 2.5"
    assert lines[1].startswith("dynllava: error: process 1 on beta was lost")
    assert len(lines) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_status_arguments_and_signals_pass_through(child: Path, tmp_path: Path, number: signal.Signals) -> None:
    child.write_text(
        f'#!/bin/sh\ntrap "exit 75" {number:d}\necho "$@" > {tmp_path}/told\ntouch {tmp_path}/ready\n'
        "while :; do sleep 0.05; done\n"
    )

    def stop() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    threading.Thread(target=stop).start()
    assert guard.guard(["train", "--x=1"]) == 75
    assert (tmp_path / "told").read_text().split() == ["-m", "dynllava_jax.cli.main", "train", "--x=1"]
    assert signal.getsignal(number) == before


def test_only_the_child_is_guarded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not guard.is_guarded()
    monkeypatch.setenv(guard.PEERS, "x")
    assert guard.is_guarded()
