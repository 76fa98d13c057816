"""The ways in which this package says no."""

from collections.abc import Sequence
from typing import Any

_MOST = 120


def shown(value: Any) -> str:
    """A wrong value as messages quote it: cut where a damaged file would fill the screen with it."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write out whole numbers of thousands of digits
        return "a number of thousands of digits"
    return text if len(text) <= _MOST else f"{text[: _MOST - 20]} … ({len(text)} characters)"


def some(items: Sequence[str], separator: str = ", ", most: int = 5) -> str:
    """The first few of a list, and how many more there are."""
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + more


class InputError(ValueError):
    """Bad input: one sentence that names the file, field or key and says what to do.

    The library raises it before any device work; the command line prints it as
    `dynllava: error: …` and exits with status 2.
    """


class CheckError(RuntimeError):
    """A check that ran to its end and failed (exit status 1), such as a parity case out of tolerance."""


class InterruptedRunError(RuntimeError):
    """A run lost something that it needs, such as a process, and nothing is wrong with it: started again, it goes on
    from what is saved (exit status 75, as after a signal).
    """
