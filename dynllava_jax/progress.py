"""How far long work is, the same for all of it: a bar on a terminal, elsewhere a line now and then."""

import re
import sys
import time
from typing import Any

_LINE_SECONDS = 60.0
_LINE = "{desc}: {n_fmt} of {total_fmt} ({percentage:.0f} %), {rate_fmt}, {remaining} left"


class Progress:
    """On stderr, with rate and remaining time. Off a terminal, work of less than a minute says nothing.

    Args:
        what: is done.
        unit: of what is counted, in the singular.
        scaled: large counts are told in k and M.
    """

    def __init__(self, what: str, unit: str, *, scaled: bool = False) -> None:
        self._what, self._unit, self._scaled = what, unit, scaled
        self._bar: Any = None
        self._total = self._first = self._done = 0
        self._began = self._said = 0.0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def start(self, total: int, done: int = 0) -> None:
        """Begins to count and to take the time: `done` of `total` was there before."""
        from tqdm import tqdm

        self._total, self._first, self._done = total, done, done
        self._began = self._said = time.monotonic()
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total, initial=done, unit=self._unit, unit_scale=self._scaled, desc=self._what, dynamic_ncols=True
            )

    def advance(self, count: int = 1) -> None:
        if self._bar is not None:
            self._bar.update(count)
            return
        self._done += count
        now = time.monotonic()
        if self._total and now - self._said >= _LINE_SECONDS:
            self._said = now
            print(self._line(now - self._began), file=sys.stderr, flush=True)

    def _line(self, elapsed: float) -> str:
        from tqdm import tqdm

        line = tqdm.format_meter(
            self._done,
            self._total,
            elapsed,
            prefix=self._what,
            unit=self._unit,
            unit_scale=self._scaled,
            initial=self._first,
            bar_format=_LINE,
        )
        return re.sub(" +", " ", line)  # tqdm pads the rate
