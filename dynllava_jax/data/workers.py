"""Work over all samples of a source by several processes, with the results in order."""

import collections
import concurrent.futures
import itertools
import multiprocessing
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
    try:
        waiting = collections.deque(pool.submit(_run, chunk) for chunk in itertools.islice(chunks, _AHEAD * workers))
        while waiting:
            yield from waiting.popleft().result()
            waiting.extend(pool.submit(_run, chunk) for chunk in itertools.islice(chunks, 1))
    except concurrent.futures.process.BrokenProcessPool:
        raise CheckError("A worker process was killed, mostly for want of memory; use fewer workers.") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _take(work: Callable[[int], Any]) -> None:
    global _work
    _work = work


def _run(numbers: range) -> list[Any]:
    return [_work(number) for number in numbers]
