"""A small process beside each of several that train together: it says in one line why the training one ended.

When a process of a run is lost, JAX ends all others from a thread of its own, with an abort and a page of C++ frames:
no Python of theirs runs any more. So each is the child of one that looks on, passes signals to it, and turns such an
end into a line that names the lost process and a status that the launch scripts start again on.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PEERS = "DYNLLAVA_PEERS"
"""Environment variable of the child: the file that it writes the names of all hosts to."""
GUARD = "DYNLLAVA_GUARD"
"""Environment variable of the child: the id of the process that looks on."""
LOST = os.EX_TEMPFAIL
"""Exit status where a process was lost: start again."""

PROGRAM = "dynllava_jax.cli.main"

_FATAL = re.compile(r"F\d{4} .*JAX distributed service detected fatal errors")
_SILENT = re.compile(r"stopped sending heartbeats\):\n((?:\S+\n)+?)The tasks have crashed")
_APART = re.compile(r"DEADLINE_EXCEEDED[^\n]*\s+RPC: \S+/RegisterTask\b")
"""Not all had joined when `jax.distributed.initialize` gave up; who is missing, it does not say."""
_ORDERLY = (0, 1, 2, LOST, 130)
_AGAIN = "the run stops on all hosts; the launch scripts start it again, and it goes on from the last checkpoint"


def is_guarded() -> bool:
    """Whether this process is the child."""
    return PEERS in os.environ


def guard(argv: Sequence[str]) -> int:
    """Runs `dynllava` with these arguments as a child, and returns its exit status, `LOST` where it was torn down."""
    children: list[subprocess.Popen[str]] = []
    early: list[int] = []

    def pass_to_child(number: int, frame: object) -> None:
        children[0].send_signal(number) if children else early.append(number)

    before = {number: signal.signal(number, pass_to_child) for number in (signal.SIGTERM, signal.SIGUSR1)}
    # A terminal sends it to the child too; ignored, it would be so by the child as well.
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda number, frame: None)
    try:
        with tempfile.TemporaryDirectory() as folder:
            peers = Path(folder) / "peers.json"
            children.append(_start(argv, peers))
            for number in early:
                children[0].send_signal(number)
            fatal = _pass_on(children[0])
            line = explain(status := children[0].wait(), fatal, _read(peers))
    finally:
        for child in children:
            child.kill()
        for number, handler in before.items():
            signal.signal(number, handler)
    if line is None:
        return status
    print(f"dynllava: error: {line}", file=sys.stderr, flush=True)
    return LOST


def explain(status: int, fatal: str, hosts: Sequence[str]) -> str | None:
    """Why the child ended; None: it has said so itself.

    Args:
        status: of its exit, negative for a signal.
        fatal: the end of its stderr, from JAX's complaint on.
        hosts: of all processes.
    """
    if _APART.search(fatal):
        return (
            "not all processes of the run came together in time (one was not started, or was lost before, or process 0 "
            f"cannot be reached): {_AGAIN}."
        )
    if fatal:
        found = _SILENT.search(fatal)
        # Without a name it is the coordinator, which is process 0, that cannot be reached.
        lost = [int(task.rpartition(":")[2]) for task in found[1].split()] if found else [0]
        names = ", ".join(f"process {number}{_on(number, hosts)}" for number in lost)
        return f"{names} {'was' if len(lost) == 1 else 'were'} lost (killed or hung, or its host went away): {_AGAIN}."
    if status in _ORDERLY:
        return None
    how = signal.Signals(-status).name if status < 0 else f"status {status}"
    why = ", mostly for want of memory" if status == -signal.SIGKILL else ""
    return f"the training process ended with {how}{why}: {_AGAIN}."


def _on(number: int, hosts: Sequence[str]) -> str:
    return f" on {hosts[number]}" if number < len(hosts) else ""


def _start(argv: Sequence[str], peers: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", PROGRAM, *argv],
        env=os.environ | {PEERS: str(peers), GUARD: str(os.getpid())},
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )


def _pass_on(child: subprocess.Popen[str]) -> str:
    """Passes stderr on line by line; what JAX says when it ends the process is kept back and returned."""
    kept = ""
    assert child.stderr is not None
    with child.stderr:
        for line in child.stderr:
            if kept or _FATAL.match(line):
                kept += line
            else:
                sys.stderr.write(line)
                sys.stderr.flush()
    return kept


def _read(peers: Path) -> list[str]:
    try:
        return json.loads(peers.read_text())
    except (OSError, ValueError):
        return []
