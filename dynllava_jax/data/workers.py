"""Work over all samples of a source by several processes, with the results in order."""

import collections
import concurrent.futures
import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from dynllava_jax.errors import CheckError

_CHUNK = 16
_AHEAD = 4
"""Chunks per process that are under way or waiting to be taken."""

T = TypeVar("T")
_work: Callable[[int], Any]


def in_order(work: Callable[[int], T], numbers: range, workers: int) -> Iterator[T]:
    """`work` of each number. 0 workers: in this process.

    `work` and its results are pickled; it should turn a bad sample into a result.

    Raises:
        CheckError: a process was killed, mostly for want of memory.
    """
    if not workers:
        yield from map(work, numbers)
        return
    # Processes are started afresh: a fork of one that has threads (JAX, gRPC) may hang.
    pool = concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_take, initargs=(work,)
    )
    chunks = (numbers[start : start + _CHUNK] for start in range(0, len(numbers), _CHUNK))
    waiting: collections.deque[concurrent.futures.Future[list[T]]] = collections.deque()

    def begin(count: int) -> None:
        with _interrupts_blocked():
            waiting.extend(pool.submit(_run, chunk) for chunk in itertools.islice(chunks, count))

    try:
        begin(_AHEAD * workers)
        while waiting:
            yield from waiting.popleft().result()
            begin(1)
    except concurrent.futures.process.BrokenProcessPool:
        raise CheckError("A worker process was killed, mostly for want of memory; use fewer workers.") from None
    finally:
        pool.shutdown(cancel_futures=True)


def end_with_parent() -> None:
    """Called in a worker process, ends it when its parent ends, however that does: it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextlib.contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes that are started here never see Ctrl-C, which a terminal sends to all: they would each complain of it.

    This process gets it when the block ends, and ends them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _take(work: Callable[[int], Any]) -> None:
    global _work
    _work = work
    end_with_parent()


def _run(numbers: range) -> list[Any]:
    return [_work(number) for number in numbers]
