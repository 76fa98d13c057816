"""A profiler's window over a few steps."""

import contextlib
from collections.abc import Iterator
from typing import Any

import jax


class Profiler:
    """Traces steps `first` to `first + count - 1` into a folder for TensorBoard or Perfetto."""

    def __init__(self, folder: str, first: int, count: int) -> None:
        self._folder, self._first, self._end = folder, first, first + count
        self._running = False

    def before(self, step: int, state: Any) -> None:
        """Called before each step is begun.

        Args:
            step: its number, from 1 on, as in `metrics.jsonl`.
            state: what the steps begun so far will give; the trace ends when that is there.
        """
        if self._running and step >= self._end:
            self._stop(state)
        elif step == self._first:
            jax.block_until_ready(state)
            jax.profiler.start_trace(self._folder)
            self._running = True

    def _stop(self, state: Any) -> None:
        jax.block_until_ready(state)
        jax.profiler.stop_trace()
        self._running = False

    def close(self) -> None:
        if self._running:
            self._stop(())


@contextlib.contextmanager
def profiler(workdir: str, window: tuple[int, int] | None) -> Iterator[Profiler]:
    """The profiler of a run; without a window it never starts."""
    made = Profiler(f"{workdir}/profile", *(window or (0, 0)))
    try:
        yield made
    finally:
        made.close()
