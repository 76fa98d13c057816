"""The batches of a run as its loop takes them: what waiting for them costs, and what happens when they break off."""

import contextlib
from collections.abc import Iterator, Sequence

import jax

from dynllava_jax.errors import CheckError, InputError, InterruptedRunError
from dynllava_jax.training.feed import DeviceBatch, Feed
from dynllava_jax.training.goodput import DATA, Goodput
from dynllava_jax.training.record import Recorder


class Supply:
    """An iterator over a feed that ends where the feed breaks; the loop then saves, and raises `error`.

    Attributes:
        broken: what the feed raised, or None.
    """

    def __init__(self, feed: Feed, recorder: Recorder, times: Goodput) -> None:
        self._feed, self._recorder, self._times = feed, recorder, times
        self.broken: InputError | CheckError | None = None

    def __iter__(self) -> Iterator[DeviceBatch]:
        """Raises BadLossError: of the step before, see `Recorder.settle`."""
        batch = self._next()  # waiting for the first one is part of starting
        while batch is not None:
            self._times.begin()
            yield batch
            if not self._feed.ready:
                self._recorder.settle()  # what the devices still have to do hides a part of the wait
            with self._times.spent(DATA):
                batch = self._next()

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Keeps in `broken` what reading raises in here, held-out samples included."""
        try:
            yield
        except (InputError, CheckError) as error:
            self.broken = error

    def error(self, saved: Sequence[int]) -> Exception:
        """What ends the run.

        Args:
            saved: steps of the checkpoints that there are.
        """
        assert self.broken is not None
        if not saved:
            kept = "There is no checkpoint yet"
        elif jax.process_count() == 1:
            kept = f"All {saved[-1]} steps before are saved: the same command goes on from there"
        else:  # the other processes wait in a step that will never be
            kept = f"The last checkpoint is that of step {saved[-1]}: the same command goes on from there"
        told = f"{self.broken} {kept}."
        # A process that was killed may well live the next time; data that are damaged stay so.
        return InterruptedRunError(told) if isinstance(self.broken, CheckError) else InputError(told)

    def _next(self) -> DeviceBatch | None:
        with self.watched():
            return next(self._feed, None)
