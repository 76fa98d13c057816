"""What docs/benchmarks.md says of the benchmarks' commands and of their records."""

import re
import shlex
from pathlib import Path
from typing import Any, NamedTuple

TEXT = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
_KEY = re.compile(r"`([a-z]+(?:_[a-z0-9]+)+(?:\.[a-z]+)?|mfu)`")
_SECTIONS = {"Attention kernels": "attention", "Generation": "generate", "A training step": "train"}


class Aim(NamedTuple):
    """A row of the table of aims."""

    command: str
    record: str
    key: str


def section(title: str) -> str:
    """What stands under a heading; "" is what stands before the first one."""
    if not title:
        return TEXT.partition("\n## ")[0]
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def aims() -> list[Aim]:
    rows = [line.strip("| ").split(" | ") for line in section("Aims on an H200").splitlines() if " | " in line]
    return [Aim(row[2].strip("`"), row[3], row[4].strip("`")) for row in rows if row[2].startswith("`dynllava")]


def keys(kind: str) -> set[str]:
    """Every key of a kind of benchmark's records that is named; those of the machine are in all of them."""
    own = [key for title, of in _SECTIONS.items() if of == kind for key in _KEY.findall(section(title))]
    aimed = [aim.key for aim in aims() if shlex.split(aim.command)[2] == kind]
    return {*_KEY.findall(section("")), *own, *aimed}


def commands() -> list[str]:
    """Every `dynllava` command of blocks and cells, without the remarks behind it."""
    blocks = re.findall(r"^    (dynllava .*)$", TEXT.replace("\\\n", " "), re.MULTILINE)
    found = [*blocks, *re.findall(r"`(dynllava [a-z]+ [a-z]+ [^`]+)`", TEXT)]
    return sorted({" ".join(command.partition("#")[0].split()) for command in found})


def names(records: list[dict[str, Any]]) -> set[str]:
    """Keys of records, those of a nested value too, as the document spells them."""
    inner = [
        f"{key}.{name}"
        for record in records
        for key, value in record.items()
        if isinstance(value, dict)
        for name in value
    ]
    return {key for record in records for key in record} | set(inner)
