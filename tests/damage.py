"""Damaged JSON, systematically: every value of a document, one at a time, becomes something else or goes away."""

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

from dynllava_jax.errors import InputError

_ABSENT = object()
_VALUES = (
    *(_ABSENT, None, "", "x", -1, 0, 1, 2.5, float("inf"), float("nan"), True, False),
    *([], {}, [None], {"k": 1}, 10**40, 10**400, "y" * 10_000),
)
_TEXTS = (b"", b" ", b"{", b"[]", b"3", b"\xff\xfe{\0", b"[" * 100_000, b'{"a": ' * 100_000, b'{"a": 1, "a": 2}', b"\0")


def damaged(
    document: Any, skip: Callable[[tuple[Any, ...]], bool] = lambda place: False
) -> Iterator[tuple[str, bytes]]:
    """What was done, and the file's new content; `skip` is asked for each place, its keys from the outside in."""
    for place in _places(document):
        for value in () if skip(place) else _VALUES:
            if place or value is not _ABSENT:
                yield f"{place} {str(value)[:20]}", json.dumps(_replaced(document, place, value)).encode()
    for text in (*_TEXTS, json.dumps(document).encode()[:-1]):
        yield f"text {text[:20]!r}", text


def outcome(what: str, read: Callable[[], Any], *names: str) -> Any:
    """What `read` gives, or None where it refuses in one short line that holds `names`.

    Raises:
        AssertionError: any other exception, a message of several lines, a long one, or one that names nothing.
    """
    try:
        return read()
    except InputError as error:
        message = str(error)
        assert "\n" not in message, (what, message)
        assert len(message) < 600, (what, message[:300])
        assert all(name in message for name in names), (what, message)
        return None
    except Exception as error:
        raise AssertionError(f"{what}: {type(error).__name__}: {error}") from error


def _places(document: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    inner = (
        document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    )
    for key, value in inner:
        yield from _places(value, (*at, key))


def _replaced(document: Any, place: tuple[Any, ...], value: Any) -> Any:
    if not place:
        return value
    made = parent = copy.deepcopy(document)
    for key in place[:-1]:
        parent = parent[key]
    if value is _ABSENT:
        del parent[place[-1]]
    else:
        parent[place[-1]] = value
    return made
