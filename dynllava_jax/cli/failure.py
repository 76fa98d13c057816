"""How an error becomes one line on stderr and an exit status."""

import os
import sys
import traceback

from dynllava_jax.cli.streams import silence
from dynllava_jax.errors import CheckError, InputError, InterruptedRunError

_STATUS = {InputError: 2, CheckError: 1, InterruptedRunError: os.EX_TEMPFAIL}


def is_expected(error: Exception) -> bool:
    """Whether it is of one of our own kinds; any other is a fault of the program."""
    return isinstance(error, tuple(_STATUS))


def report(error: Exception | KeyboardInterrupt, debug: bool = False) -> tuple[int, str]:
    """Says what went wrong, and returns exit status and message.

    Args:
        error: any; one that is not expected has status 1, Ctrl-C has 130.
        debug: whether the traceback is wanted too.
    """
    if isinstance(error, KeyboardInterrupt):
        print("dynllava: interrupted", file=sys.stderr)
        return 130, "interrupted"
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 1)
    message = " ".join(str(error).split())
    if not is_expected(error):
        message = f"{type(error).__name__}: {message} (--debug shows where)"
    if debug:
        traceback.print_exception(error)
    try:
        print(f"dynllava: error: {message}", file=sys.stderr, flush=True)
    except OSError:  # a log on a full disk: the status says it alone
        silence(sys.stderr)
    return status, message
