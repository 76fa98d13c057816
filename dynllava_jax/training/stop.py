"""Stopping a run from outside: SIGTERM or SIGUSR1 to any process, and all of them stop at the same step."""

import collections
import functools
import logging
import signal
from types import FrameType, TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

EXIT_SAVED = 75
"""Exit status of a run that has saved and is not finished (`EX_TEMPFAIL`: start it again)."""

_LAG = 2
"""Steps from a vote to its effect. The vote queues behind the steps dispatched before it, so reading it at once would
make the host wait for the device; this late, it is there, and the host may run ahead as usual."""

_log = logging.getLogger(__name__)


class StopSignal:
    """Catches the signals while it is entered; the handlers from before come back afterwards.

    Enter it in the main thread. Before, a signal ends the process: there is nothing to save. `cli.train` and the guard
    see to the exit status, `processes.join` keeps JAX from catching SIGTERM itself.

        with StopSignal() as stop:
            for step in …:
                …
                if stop.agreed():
                    …save, leave with EXIT_SAVED
    """

    def __init__(self, signals: tuple[signal.Signals, ...] = (signal.SIGTERM, signal.SIGUSR1)) -> None:
        self._signals = signals
        self._before: dict[signal.Signals, Any] = {}
        self._received: str | None = None
        self._votes: collections.deque[jax.Array] = collections.deque()
        self._agreed = False

    def __enter__(self) -> "StopSignal":
        for number in self._signals:
            self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._before:
            number, handler = self._before.popitem()
            # None is a handler that Python did not install and cannot give back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def agreed(self) -> bool:
        """Whether to stop now: the same answer on every process, `_LAG` steps after a signal to one of them.

        Call it once a step, on every process. With one process it is immediate and touches no device.
        """
        if self._agreed:
            return True
        if jax.process_count() == 1:
            self._agreed = self._received is not None
        else:
            self._votes.append(_any(_vote(self._received is not None)))
            if len(self._votes) > _LAG:
                self._agreed = bool(self._votes.popleft().addressable_data(0))
        if self._agreed:
            _log.warning("%s: saving, then stopping", self._received or "another process was told to stop")
        return self._agreed

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # Nothing but this: a handler may interrupt any line, also one inside the logging module.
        self._received = signal.Signals(number).name


@functools.cache
def _vote(stop: bool) -> jax.Array:
    """A process's vote, on each of its devices, as one global array; only two are ever made."""
    devices = jax.devices()
    votes = jax.sharding.NamedSharding(jax.sharding.Mesh(np.array(devices), ("devices",)), jax.P("devices"))
    mine = [jax.device_put(np.full(1, stop), device) for device in devices if device in votes.addressable_devices]
    return jax.make_array_from_single_device_arrays((len(devices),), votes, mine)


@jax.jit
def _any(votes: jax.Array) -> jax.Array:
    return jnp.any(votes)
