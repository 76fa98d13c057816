"""Several training processes started as a cluster would, and how they ended; `process_run.py` is each of them."""

import collections
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]

Processes = list[subprocess.Popen[str]]


def start(commands: Iterable[list[str]], **environments: dict[int, str]) -> Processes:
    """A process for each command; `environments`: name -> value for some of them, by number."""
    commands = list(commands)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.training.process_run", *argv),
                f"--distributed={address},{len(commands)},{n}",
            ],
            env=os.environ
            | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
            | {name: values[n] for name, values in environments.items() if n in values},
            cwd=ROOT,
            text=True,
            stderr=subprocess.PIPE,
            process_group=0,
        )
        for n, argv in enumerate(commands)
    ]


def ends(processes: Processes, hung: int | None = None) -> tuple[list[int], list[str]]:
    """Exit statuses, and what each said.

    Args:
        processes: of `start`.
        hung: the one that stops itself (SIGSTOP); it is woken when all others have ended.
    """
    said = [""] * len(processes)
    try:
        for n in sorted(range(len(processes)), key=lambda n: n == hung):
            if n == hung:
                os.killpg(processes[n].pid, signal.SIGCONT)
            said[n] = processes[n].communicate(timeout=400)[1]
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):  # nothing of it is left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return [process.returncode for process in processes], said


def last_line(said: str) -> str:
    return said.splitlines()[-1]


def fed(folder: Path, name: str, count: int) -> dict[int, list[str]]:
    """The ids of all processes together, by step."""
    found = collections.defaultdict(list)
    for number in range(count):
        for line in (folder / f"{name}.{number}").read_text().splitlines():
            step, ids = json.loads(line)
            found[step] += ids
    return found
