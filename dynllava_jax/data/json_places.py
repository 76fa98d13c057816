"""Where each sample of a JSON file begins and ends, without keeping any of them.

N samples.
"""

import json
import mmap
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from jaxtyping import Int

from dynllava_jax.errors import InputError

_WINDOW = 2**24
_BLANK = b" \t\r\n"
_BOM = b"\xef\xbb\xbf"
_GAP = re.compile(r"[ \t\r\n]*(,?)[ \t\r\n]*(\]?)")


def places(file: Path) -> Int[np.ndarray, "N 2"]:
    """First and last-plus-one byte of each element of a JSON list, or of each line that is not blank.

    Elements of a list are parsed once (about 100 MB a second); lines are not, so a broken one shows when it is read.

    Raises:
        InputError: an empty file, one that begins neither as a list nor as a line, or a list that is no JSON.
    """
    with file.open("rb") as opened:
        if not file.stat().st_size:
            raise InputError(f"{file} is empty; a JSON list or JSON lines were expected.")
        with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as view:
            start = _skip(view, len(_BOM) if view[:3] == _BOM else 0)
            first = view[start : start + 1]
            if first == b"[":
                found = list(_elements(file, view, start + 1))
            elif first == b"{":
                found = list(_lines(view, start))
                _check_first(file, view, found[0])
            else:
                raise InputError(f"{file} begins with {first!r}; a JSON list or JSON lines were expected.")
    return np.array(found, np.int64).reshape(-1, 2)


def _lines(view: mmap.mmap, start: int) -> Iterator[tuple[int, int]]:
    while start < len(view):
        end = view.find(b"\n", start)
        end = len(view) if end < 0 else end
        if view[start:end].strip(_BLANK):
            yield start, end
        start = end + 1


def _check_first(file: Path, view: mmap.mmap, span: tuple[int, int]) -> None:
    """One object spread over many lines is not JSON lines, and would be a bad sample on every line."""
    try:
        json.loads(view[slice(*span)])
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{file} is neither a JSON list nor JSON lines: its first line is no JSON ({error})."
        ) from None


def _elements(file: Path, view: mmap.mmap, start: int) -> Iterator[tuple[int, int]]:
    """Parses one window of the file after the other.

    Read as Latin-1 every byte is one character, so places in the text are places in the file; what JSON is made of
    is ASCII, and no byte of another character looks like it.
    """
    decode = json.JSONDecoder().raw_decode
    size, text, at, first = 0, "", 0, True
    while True:
        gap = _GAP.match(text, at)
        assert gap is not None
        comma, close = gap.groups()
        try:
            if close and not comma and not view[start + gap.end() :].strip(_BLANK):
                return
            if close or bool(comma) == first or text[gap.end() : gap.end() + 1] != "{":
                raise ValueError("an object was expected")
            end = decode(text, gap.end())[1]
        except (ValueError, RecursionError) as error:
            if size and start + size >= len(view):
                raise InputError(f"{file} is no list of JSON objects: byte {start + at} and after: {error}.") from None
            # The window may only have ended too soon: it moves, or grows where one element is larger.
            start, size, at = start + at, _WINDOW if at else max(_WINDOW, 2 * size), 0
            text = view[start : start + size].decode("latin-1")
            continue
        yield start + gap.end(), start + end
        at, first = end, False


def _skip(view: mmap.mmap, start: int) -> int:
    """The first byte from `start` on that is not blank."""
    while view[start : start + 1] and view[start : start + 1] in _BLANK:
        start += 1
    return start
