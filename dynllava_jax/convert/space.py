"""Whether the disk has room for what is about to be written."""

import shutil
from pathlib import Path

from dynllava_jax.checkpoint.paths import AnyPath
from dynllava_jax.errors import InputError

_SPARE = 64 << 20
"""Small files, and what file systems need for themselves."""


def check(folder: AnyPath, nbytes: int, way_out: str = "free some or give another DST") -> None:
    """Raises InputError when `nbytes` more, besides what lies in `folder` already, do not fit on its disk."""
    if not isinstance(folder, Path):  # a bucket has room
        return
    place = folder
    while not place.exists():
        place = place.parent
    there = sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file()) if folder.exists() else 0
    free = shutil.disk_usage(place).free
    if nbytes + _SPARE > free + there:
        raise InputError(
            f"{folder.parent} has {free / 1e9:.3g} GB free, but {(nbytes + _SPARE - there) / 1e9:.3g} GB are to be "
            f"written; {way_out}."
        )
