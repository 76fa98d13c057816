"""A bar with rate and remaining time, the same for every command with long work."""

import sys
from typing import Any


class Progress:
    """A bar on a terminal; nothing elsewhere. What a count means is `unit`; large ones are scaled (k, M) if asked."""

    def __init__(self, what: str, unit: str, *, scaled: bool = False) -> None:
        self._what, self._unit, self._scaled = what, unit, scaled
        self._bar: Any = None

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def start(self, total: int, done: int = 0) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            total=total,
            initial=done,
            unit=self._unit,
            unit_scale=self._scaled,
            desc=self._what,
            disable=not sys.stderr.isatty(),
        )

    def advance(self, count: int = 1) -> None:
        if self._bar is not None:
            self._bar.update(count)
