"""Ctrl-C ends a command also where Python can only ignore the exception."""

import _thread
import contextlib
import sys
import threading
from collections.abc import Iterator
from typing import Any

_SECONDS = 0.01


@contextlib.contextmanager
def heard_interrupts() -> Iterator[None]:
    """An interrupt that is lost within the block comes again `_SECONDS` later.

    Python cannot raise one in a callback, such as JAX's own whenever garbage is collected: it says "Exception ignored
    in …" and goes on. One in seven that were sent to a short command ended so, and a training run is collected more.
    """
    before = sys.unraisablehook

    def hook(lost: Any) -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):
            before(lost)
            return
        again = threading.Timer(_SECONDS, _thread.interrupt_main)  # here it would be lost as well
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before
