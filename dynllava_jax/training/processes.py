"""What the processes of a run have to agree on; nothing happens where there is only one."""

import contextlib
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # the store of strings that all processes see, which has no public name
from jax.experimental import multihost_utils

from dynllava_jax.errors import CheckError, InputError, InterruptedRunError
from dynllava_jax.training.guard import GUARD, PEERS

AUTO = "auto"
SILENCE = "DYNLLAVA_SILENCE"
"""Environment variable: seconds without a sign of life after which a process counts as lost."""

_SILENCE = 60
_POLL = 1.0
"""Seconds between two looks at whether another process has ended."""
_HOST, _ENDED = "dynllava/host/", "dynllava/ended"


def join(where: str = AUTO) -> None:
    """Makes this process one of several; before anything else touches a device.

    Args:
        where: `HOST:PORT,COUNT,NUMBER`, or AUTO: what Slurm, a TPU pod or Open MPI tells.

    Raises:
        InputError: it is written otherwise, SILENCE holds no seconds, or no cluster says anything. Where the others do
            not come within five minutes, or the first one cannot be reached, JAX ends this process, and the one beside
            it says so.
    """
    silence = _silence()
    arguments: dict[str, Any] = {}
    if where != AUTO:
        if (match := re.fullmatch(r"([^,]+:\d+),(\d+),(\d+)", where)) is None or int(match[3]) >= int(match[2]):
            raise InputError(
                f"--distributed {where} is not HOST:PORT,COUNT,NUMBER, such as 10.0.0.1:1234,2,0 and …,2,1."
            )
        address, count, number = match.groups()
        arguments = {"coordinator_address": address, "num_processes": int(count), "process_id": int(number)}
    # On a CPU two dispatched programs run at the same time, and their collectives wait for each other for ever.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    # It catches SIGTERM and only notes it: one that comes before `StopSignal` is entered would be lost.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=silence)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--distributed finds no other processes ({reason}); give HOST:PORT,COUNT,NUMBER.") from error


@contextlib.contextmanager
def shared_fate(report: Callable[[Exception | KeyboardInterrupt], tuple[int, str]]) -> Iterator[None]:
    """What ends one process with an error or Ctrl-C ends all of them, with the same exit status and one line each.

    Otherwise those that are well would wait for the one that has left. Where there is only one, nothing happens.

    Args:
        report: says what an error was; returns exit status and message.
    """
    store, number, count = (distributed.global_state.client, *_place())
    if store is None or count == 1:
        yield
        return
    store.key_value_set(f"{_HOST}{number}", socket.gethostname())
    hosts = [store.blocking_key_value_get(f"{_HOST}{other}", 1000 * _silence()) for other in range(count)]
    if file := os.environ.get(PEERS):
        Path(file).write_text(json.dumps(hosts))
    over = threading.Event()
    parent = int(os.environ.get(GUARD, os.getppid()))  # which may be gone already, and another one in its place
    threading.Thread(target=_watch, args=(store, number, hosts, over, parent), daemon=True).start()
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if not isinstance(error, (InputError, CheckError, InterruptedRunError, KeyboardInterrupt)):
            # A lost process first shows as a broken connection. JAX finds out which one it was, and ends this one too.
            with contextlib.suppress(KeyboardInterrupt):  # who does not want to wait is told the error at once
                time.sleep(1.5 * _silence())
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C would keep this from being told to the others
        over.set()
        status, message = report(error)
        with contextlib.suppress(Exception):  # another one was quicker, or the store is gone
            store.key_value_set(_ENDED, json.dumps([number, status, message]))
        _leave(status, number)
    finally:
        over.set()


def _watch(store: Any, number: int, hosts: list[str], over: threading.Event, parent: int) -> None:
    """Ends this process when another says that it has ended, or when nobody looks on any more."""
    while not over.wait(_POLL):
        if os.getppid() != parent:
            os._exit(os.EX_TEMPFAIL)
        try:
            other, status, message = json.loads(store.key_value_try_get(_ENDED))
        except Exception:  # nothing is there, or the store is gone: then JAX ends this process
            continue
        if not over.is_set():
            _leave(status, number, f"dynllava: error: process {other} on {hosts[other]} has ended: {message}\n")


def _leave(status: int, number: int, line: str = "") -> None:
    """Without the usual way out, which waits for the other processes; the first, which has the store, last."""
    if number == 0:
        time.sleep(4 * _POLL)
    sys.stderr.write(line)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _place() -> tuple[int, int]:
    """Number of this process and their count, without asking for devices."""
    return distributed.global_state.process_id, distributed.global_state.num_processes


def _silence() -> int:
    """Raises InputError: the variable holds no seconds."""
    text = os.environ.get(SILENCE) or str(_SILENCE)
    if re.fullmatch(r"[1-9]\d{0,5}", text) is None:
        raise InputError(f"{SILENCE}={text} is no whole number of seconds, such as {_SILENCE}.")
    return int(text)


def is_first() -> bool:
    return jax.process_index() == 0


def same(value: int) -> int:
    """The first process's value, on every process. Collective."""
    return value if jax.process_count() == 1 else int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def largest(value: float) -> float:
    """The largest of all processes' values, on every process. Collective."""
    return value if jax.process_count() == 1 else float(np.max(multihost_utils.process_allgather(np.float32(value))))


def raise_together(error: BaseException | None) -> None:
    """Raises on every process if any has an error, so that none waits for one that is gone. Collective.

    Raises:
        InputError: another process failed.
        BaseException: `error` itself.
    """
    if jax.process_count() > 1:
        failed = np.flatnonzero(multihost_utils.process_allgather(np.int32(error is not None)))
        if error is None and len(failed):
            raise InputError(f"Process {failed[0]} failed; its own message says why.")
    if error is not None:
        raise error
