"""One run at a time in a work folder: the second one is refused before it touches anything."""

import contextlib
import fcntl
import json
import logging
import os
import socket
import uuid
from collections.abc import Iterator
from typing import IO

from etils import epath

from dynllava_jax.checkpoint.paths import is_remote
from dynllava_jax.errors import InputError
from dynllava_jax.training import processes

FILE = "running.json"

_log = logging.getLogger(__name__)


class Claim:
    """That a work folder is this run's. Made by `claim`."""

    def __init__(self, workdir: str) -> None:
        self._workdir, self._path = workdir, epath.Path(workdir) / FILE
        self._own = {"host": socket.gethostname(), "pid": os.getpid(), "run": uuid.uuid4().hex}

    def check(self) -> None:
        """Whether it still is: where no lock holds (a bucket has none), a run that came later has written its name.

        Raises:
            InputError: it is another run's now.
        """
        if processes.is_first() and (other := _read(self._path)) and other != self._own:
            raise InputError(
                f"{self._workdir} was taken over by {_spell(other)}; this run stops, and saves nothing more: give each "
                "run a --workdir of its own."
            )

    def _take(self) -> IO[bytes] | None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        lock = None if is_remote(self._workdir) else self._lock()
        self._path.write_text(json.dumps(self._own))
        return lock

    def _lock(self) -> IO[bytes] | None:
        """The system gives it back when the process ends, however that happens."""
        file = open(self._path, "ab")  # noqa: SIM115
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise InputError(
                f"{self._workdir} is in use by {_spell(_read(self._path))}: wait until that run has ended, stop it, or "
                "give this one another --workdir."
            ) from None
        except OSError as error:
            _log.warning("%s knows no locks (%s): see to it that no other run uses it", self._workdir, error.strerror)
        return file


@contextlib.contextmanager
def claim(workdir: str) -> Iterator[Claim]:
    """Takes a work folder for as long as it is entered; the first process does. Collective.

    Raises:
        InputError: another run has it, or it cannot be written.
    """
    own, lock, error = Claim(workdir), None, None
    if processes.is_first():
        try:
            lock = own._take()
        except InputError as failure:
            error = failure
        except OSError as failure:
            reason = failure.strerror or failure  # the libraries of buckets give a text alone
            error = InputError(f"The work folder {workdir} cannot be written: {reason}; give another one.")
    try:
        processes.raise_together(error)
        yield own
    finally:
        if lock is not None:
            lock.close()


def _read(path: epath.Path) -> dict[str, str | int]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _spell(run: dict[str, str | int]) -> str:
    return f"process {run['pid']} on {run['host']}" if {"pid", "host"} <= set(run) else "another run"
