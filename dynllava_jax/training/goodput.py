"""Where the time of a run goes, over all starts of its work folder: what is lost before, between and beside its steps.

Every moment of the main thread counts once. `WORKDIR/goodput.json` goes along from start to start.
"""

import contextlib
import dataclasses
import json
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from etils import epath

from dynllava_jax.checkpoint.paths import is_remote
from dynllava_jax.config.data import DataConfig
from dynllava_jax.training import processes
from dynllava_jax.training.metrics import spell_time

FILE = "goodput.json"
WORK, RESTART, COMPILE, DATA, CHECKPOINT = "work", "restart", "compile", "data", "checkpoint"
KINDS = {
    WORK: "steps, evaluation included",
    RESTART: "before the first step of each start, and steps that had to be done again",
    COMPILE: "tracing and compiling, or reading compiled programs",
    DATA: "devices without work because no batch was ready, on whatever process",
    CHECKPOINT: "steps held up by saving",
}

_COMPILE_EVENTS = "/jax/core/compile/"
_BETWEEN_WRITES, _REMOTE = 30.0, 300.0
"""Seconds; a kill loses sight of no more than these."""
_WAIT, _ENOUGH = 0.05, 60.0
"""Share of waiting for data that is warned of, once so many seconds have passed."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass
class Times:
    """What is kept in the work folder.

    Attributes:
        seconds: of each of `KINDS`.
        down: seconds between the starts, in which nothing ran.
        starts: how often the run was started.
        work_at: seconds of work at each of the last checkpoints, by step: what came after is lost with a kill.
        seen: when this was written, by the wall clock.
    """

    seconds: dict[str, float] = dataclasses.field(default_factory=lambda: dict.fromkeys(KINDS, 0.0))
    down: float = 0.0
    starts: int = 0
    work_at: dict[str, float] = dataclasses.field(default_factory=dict)
    seen: float | None = None

    def started(self, step: int, now: float) -> None:
        """The run goes on from `step`: what was done beyond it is done again."""
        kept = self.work_at.get(str(step), 0.0 if step == 0 else self.seconds[WORK])
        again = max(0.0, self.seconds[WORK] - kept)
        self.seconds[WORK] -= again
        self.seconds[RESTART] += again
        self.down += max(0.0, now - (now if self.seen is None else self.seen))  # a clock may have been set back
        self.starts += 1

    @property
    def total(self) -> float:
        return sum(self.seconds.values())

    def __str__(self) -> str:
        total = max(self.total, 1e-9)
        lost = [
            f"{kind} {self.seconds[kind] / total:.1%} ({spell_time(self.seconds[kind])})"
            for kind in KINDS
            if kind != WORK
        ]
        starts = "1 start" if self.starts == 1 else f"{self.starts} starts"
        between = f"; {spell_time(self.down)} lay between the starts" if self.starts > 1 else ""
        return (
            f"goodput {self.seconds[WORK] / total:.1%} of {spell_time(self.total)} in {starts}; lost: {', '.join(lost)}"
            f"{between}"
        )


class Goodput:
    """The times of a run while it goes on. Made by `measured`."""

    def __init__(
        self,
        workdir: str,
        step: int,
        began: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] | None = None,
    ) -> None:
        self._path, self._clock, self._wall = epath.Path(workdir) / FILE, clock, wall or time.time
        self._between = _REMOTE if is_remote(workdir) else _BETWEEN_WRITES
        self._thread = threading.get_ident()
        self._since = clock() if began is None else began
        self._written = self._since
        self._kind = RESTART
        self._compiled: list[tuple[float, float]] = []
        self._here = dict.fromkeys((WORK, DATA), 0.0)
        self._agreed = dict(self._here)
        self.warned = False
        self.times = _read(self._path)
        self.times.started(step, self._wall() - (clock() - self._since))

    def begin(self) -> None:
        """From the first batch on, what is not lost is work."""
        if self._kind == RESTART:
            self._enter(WORK)

    @contextlib.contextmanager
    def spent(self, kind: str) -> Iterator[None]:
        """Counts the time in which this is entered as that of a kind."""
        before = self._kind
        self._enter(kind)
        try:
            yield
        finally:
            self._enter(before)

    def saved(self, step: int) -> None:
        """A checkpoint of this step is being written."""
        self._enter(self._kind)
        self.times.work_at = dict([*self.times.work_at.items(), (str(step), self.times.seconds[WORK])][-20:])
        self.write()

    def agree(self) -> None:
        """Counts as waiting for data what the process that waited longest did, since the last call. Collective.

        The others were in a step in that time, which could not go on without it: it looked like work.
        """
        self._enter(self._kind)
        work, own = (self._here[kind] - self._agreed[kind] for kind in (WORK, DATA))
        hidden = max(0.0, min(processes.largest(own) - own, work))
        self._book(DATA, hidden)
        self._book(WORK, -hidden)
        self._agreed = dict(self._here)

    def beat(self) -> None:
        """Writes down how it stands, not too often; once a step."""
        if self._clock() - self._written > self._between:
            self.write()

    def write(self) -> None:
        """Writes down how it stands; a run does not end because its times cannot be written."""
        self._enter(self._kind)
        self._written = self._clock()
        if not processes.is_first():
            return
        self.times.seen = self._wall()
        partial = self._path.with_name(self._path.name + ".tmp")
        try:
            partial.write_text(json.dumps(dataclasses.asdict(self.times), indent=1) + "\n")
            partial.replace(self._path)
        except OSError as error:
            _log.warning("%s could not be written: %s", self._path, error.strerror or error)

    def __str__(self) -> str:
        self._enter(self._kind)
        return str(self.times)

    def numbers(self) -> dict[str, float]:
        """For the records of a run."""
        self._enter(self._kind)
        seconds = self.times.seconds
        return {"time/goodput": seconds[WORK] / max(self.times.total, 1e-9)} | {
            f"time/{kind}": value for kind, value in seconds.items()
        }

    def waiting(self) -> float:
        """Share of the time since the first batch of this start in which the devices waited for data; 0 so far."""
        self._enter(self._kind)
        together = sum(self._here.values())
        return self._here[DATA] / together if together > _ENOUGH else 0.0

    def compiled(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        """JAX says that it has compiled, in this thread, for so long until now; nested times come before the whole."""
        if not event.startswith(_COMPILE_EVENTS) or threading.get_ident() != self._thread:
            return
        end = self._clock()
        start, inner = end - duration_secs, 0.0
        while self._compiled and self._compiled[-1][1] > start:
            first, last = self._compiled.pop()
            inner += last - max(first, start)
        self._compiled.append((start, end))
        self._book(COMPILE, duration_secs - inner)
        self._book(self._kind, inner - duration_secs)

    def _enter(self, kind: str) -> None:
        now = self._clock()
        self._book(self._kind, now - self._since)
        self._kind, self._since = kind, now

    def _book(self, kind: str, seconds: float) -> None:
        self.times.seconds[kind] += seconds
        if kind in self._here:
            self._here[kind] += seconds


@contextlib.contextmanager
def measured(workdir: str, step: int, began: float | None = None) -> Iterator[Goodput]:
    """Measures from here on until it is left, however that happens.

    Args:
        workdir: of the run.
        step: from which it goes on.
        began: when the process did, by `time.monotonic`; None: now.
    """
    goodput = Goodput(workdir, step, began)
    jax.monitoring.register_event_duration_secs_listener(goodput.compiled)
    try:
        yield goodput
    finally:
        jax.monitoring.unregister_event_duration_listener(goodput.compiled)
        goodput.write()


def advice(waiting: float, config: DataConfig, cores: int) -> str | None:
    """What to change where devices wait for data, or None where they hardly do.

    Args:
        waiting: share, see `Goodput.waiting`.
        config: of the data.
        cores: of the host.
    """
    if waiting <= _WAIT:
        return None
    if config.workers < cores - 1:
        change = f"raise data.workers from {config.workers} (the host has {cores} cores), and data.prefetch for bursts"
    else:
        change = (
            "all cores read already: pack the data once with smaller pictures (dynllava data pack … --short-side 336) "
            "onto a local disk, or take hosts with more cores"
        )
    return f"The devices wait for data {waiting:.0%} of the time: {change}."


def _problem(found: Times) -> str | None:
    """What of it is no time."""
    lists: dict[str, Any] = {"seconds": found.seconds, "work_at": found.work_at}
    if wrong := [name for name, value in lists.items() if not isinstance(value, dict)]:
        return f"{wrong[0]} is no object"
    values = {"down": found.down, "starts": found.starts, "seen": 0.0 if found.seen is None else found.seen}
    for name, value in {**values, **found.seconds, **found.work_at}.items():
        if not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
            return f"{name} is no number"
    return None


def _read(path: epath.Path) -> Times:
    """What was written before; a damaged file costs the history only."""
    try:
        found = Times(**json.loads(path.read_text()))
        if problem := _problem(found):
            raise ValueError(problem)
        found.seconds = dict.fromkeys(KINDS, 0.0) | found.seconds
        return found
    except FileNotFoundError:
        return Times()
    except (OSError, ValueError, TypeError, RecursionError) as error:
        _log.warning("%s cannot be read (%s): times are counted anew", path, error)
        return Times()
