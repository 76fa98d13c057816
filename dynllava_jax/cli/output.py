"""`--json [FILE]`, the same for every command."""

import argparse
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dynllava_jax.errors import InputError


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--json", nargs="?", const="-", type=_target, metavar="FILE", help="JSON, alone on stdout or in FILE"
    )


def _target(where: str) -> str:
    """Refuses a FILE that cannot be written now, not after minutes of work."""
    path = Path(where)
    if where != "-" and (path.is_dir() or not path.parent.is_dir()):
        why = "it is a folder" if path.is_dir() else "there is no such folder"
        raise argparse.ArgumentTypeError(f"{where} cannot be written: {why}")
    return where


def make_folder(option: str, folder: Path) -> None:
    """Makes it now, so that a place that cannot be written is not found out after minutes of work."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{option} {folder} cannot be written: {error.strerror}.") from error


def check_file(option: str, file: Path, endings: Sequence[str]) -> None:
    """Refuses a file that cannot be written, or whose name ends in no format that is known, before any work."""
    if file.suffix.lower() not in endings:
        raise InputError(f"{option} {file} must end in one of {', '.join(endings)}.")
    if file.is_dir() or not file.parent.is_dir():
        why = "it is a folder" if file.is_dir() else "there is no such folder"
        raise InputError(f"{option} {file} cannot be written: {why}.")


def write_json(where: str, records: Iterable[Any]) -> None:
    """One JSON value a line, on stdout for "-", else into the file."""
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    if where == "-":
        print("\n".join(lines))
        return
    try:
        Path(where).write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--json {where} cannot be written: {error.strerror}.") from error
