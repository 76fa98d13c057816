"""What becomes of stdout and stderr where nobody reads them, where their disk is full, where they lack a character."""

import contextlib
import io
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import Any

from dynllava_jax.errors import InputError

KILLED_BY_PIPE = 128 + signal.SIGPIPE
"""Exit status of a command whose messages nobody reads any more, as the shell says it."""


def write_any_character() -> None:
    """Characters that stdout's encoding lacks are written as Python's escapes: they end no command after its work."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


@contextlib.contextmanager
def written_out() -> Iterator[None]:
    """Empties stdout's buffer when the block ends; the interpreter could only complain of what fails at its own end.

    Raises:
        BrokenPipeError: nobody reads stdout.
        InputError: stdout cannot be written, as on a full disk.
    """
    try:
        yield
    except SystemExit:  # of --help
        _flush()
        raise
    except OSError:
        _flush()  # its own error, if it was stdout's
        raise
    except Exception:
        with contextlib.suppress(InputError, BrokenPipeError):
            _flush()
        raise
    _flush()


def status_without_reader() -> int | None:
    """Exit status after a BrokenPipeError; None: neither stdout nor stderr was that pipe.

    Whoever reads stdout had enough, as `head` has: 0. A training run whose messages nobody reads is not done.
    """
    deserted = [stream for stream in (sys.stdout, sys.stderr) if stream is not None and _is_deserted(stream)]
    for stream in deserted:
        silence(stream)
    if sys.stderr in deserted:
        return KILLED_BY_PIPE
    return 0 if deserted else None


def silence(stream: Any) -> None:
    """What it still holds goes nowhere, so that the interpreter does not complain when it exits."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _flush() -> None:
    if sys.stdout is None:  # closed by whoever started the command
        return
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        silence(sys.stdout)
        raise InputError(f"stdout cannot be written: {error.strerror}.") from error


def _is_deserted(stream: Any) -> bool:
    try:
        number = stream.fileno()
    except OSError:
        return False
    poll = select.poll()
    poll.register(number, 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))
