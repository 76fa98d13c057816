"""`--json [FILE]`, the same for every command."""

import argparse
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dynllava_jax.errors import InputError


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE", help="JSON, alone on stdout or in FILE")


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
