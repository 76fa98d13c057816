"""The next part is made while the one before is used: reading, computing and writing at the same time."""

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
_END = object()


def ahead(parts: Iterable[T]) -> Iterator[T]:
    """The parts in order, one of them in the making; what goes wrong in the making is raised here."""
    iterator = iter(parts)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, iterator, _END)
        while (part := coming.result()) is not _END:
            coming = pool.submit(next, iterator, _END)
            yield part  # pyright: ignore[reportReturnType]
            del part  # not two in memory while the next is awaited
