"""What commands write: `--json [FILE]`, the same for all of them, and files and folders that options name."""

import argparse
import contextlib
import json
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from dynllava_jax.cli.local_path import local_path
from dynllava_jax.errors import InputError


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", nargs="?", const="-", type=_target, metavar="FILE", help="JSON, alone on stdout or in FILE"
    )


def _target(where: str) -> str:
    """Refuses a FILE that cannot be written now, not after minutes of work."""
    if where == "-":
        return where
    path = local_path(where)
    if path.is_dir() or not path.parent.is_dir():
        why = "it is a folder" if path.is_dir() else "there is no such folder"
        raise argparse.ArgumentTypeError(f"{where} cannot be written: {why}")
    return str(path)


def make_folder(option: str, folder: Path) -> None:
    """Makes it now, so that a place that cannot be written is not found out after minutes of work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{option} {folder} cannot be written: {error.strerror}.") from error


def check_name(option: str, name: str) -> None:
    """Refuses what Orbax and ArrayRecord have no words for: a name whose bytes Python could not decode."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"{option} {name!r} has bytes that are no {sys.getfilesystemencoding()}; give another name, or say "
            "LC_ALL=C.UTF-8 where it is UTF-8."
        ) from None


def check_file(option: str, file: Path, endings: Sequence[str]) -> None:
    """Refuses a file that cannot be written, or whose name ends in no format that is known, before any work."""
    if file.suffix.lower() not in endings:
        raise InputError(f"{option} {file} must end in one of {', '.join(endings)}.")
    if file.is_dir() or not file.parent.is_dir():
        why = "it is a folder" if file.is_dir() else "there is no such folder"
        raise InputError(f"{option} {file} cannot be written: {why}.")


def write_json(where: str, records: Iterable[Any]) -> None:
    """One JSON value a line, on stdout for "-", else into the file."""
    if where == "-":
        _print(records)
        return
    write_file("--json", Path(where), _lines(records))


@contextlib.contextmanager
def json_lines(where: str, *, keep: bool = False) -> Iterator[Callable[[Iterable[Any]], None]]:
    """A function that writes records as `write_json` does, some at a time; the file stays open, as a pipe has to.

    Args:
        where: "-" for stdout, or a file.
        keep: after what the file holds, not in its place.

    Raises:
        InputError: it cannot be opened, or has no room: then the file holds what was written before, and that whole.
    """
    if where == "-":

        def show(records: Iterable[Any]) -> None:
            _print(records)
            sys.stdout.flush()

        yield show
        return
    file = Path(where)
    try:
        opened = file.open("ab" if keep else "wb", buffering=0)
    except OSError as error:
        raise InputError(f"--json {file} cannot be written: {error.strerror}.") from error

    def write(records: Iterable[Any]) -> None:
        left, whole = _lines(records), os.fstat(opened.fileno())
        try:
            while left:
                left = left[opened.write(left) :]
        except OSError as error:
            if stat.S_ISREG(whole.st_mode):
                os.ftruncate(opened.fileno(), whole.st_size)
                opened.seek(0, os.SEEK_END)
            raise InputError(
                f"--json {file} cannot be written: {error.strerror}; what it holds is whole (--continue goes on)."
            ) from error

    with opened:
        yield write


def write_file(option: str, file: Path, content: bytes) -> None:
    """Writes all of it: where the disk is full, nothing is left that could be taken for whole.

    Raises:
        InputError: it cannot be written; `option` named it.
    """
    try:
        opened = file.open("wb")
        try:
            with opened:
                opened.write(content)
        except OSError:
            if file.is_file():
                file.unlink()
            raise
    except OSError as error:
        raise InputError(f"{option} {file} cannot be written: {error.strerror}.") from error


def _print(records: Iterable[Any]) -> None:
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    for record in records:
        print(_line(record, encoding))


def _lines(records: Iterable[Any]) -> bytes:
    return "".join(f"{_line(record, 'utf-8')}\n" for record in records).encode()


def _line(record: Any, encoding: str) -> str:
    """As it is read best; in JSON's own escapes where the encoding lacks a character, such as half of one in a path."""
    line = json.dumps(record, ensure_ascii=False)
    try:
        line.encode(encoding)
    except UnicodeEncodeError:
        return json.dumps(record)
    return line
