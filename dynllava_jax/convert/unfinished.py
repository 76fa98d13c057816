"""A folder that has its name only when it is whole, and whose making a killed process can take up again."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dynllava_jax.checkpoint.paths import AnyPath, files_below
from dynllava_jax.errors import InputError

_MARK = "unfinished.txt"
"""Says what an unfinished folder is the beginning of."""


@contextlib.contextmanager
def unfinished(dst: AnyPath, identity: str) -> Iterator[Path]:
    """`DST.tmp`, renamed when the block ends well and removed when it fails; what a kill left of the same is kept.

    For a bucket, a local folder from which files may be sent there early; the rest is sent at the end.
    """
    if not isinstance(dst, Path):
        with tempfile.TemporaryDirectory(prefix="dynllava-export-") as scratch:
            yield Path(scratch)
            # What says that the folder is a model, its config.json, goes last.
            for name, file in sorted(files_below(Path(scratch)), key=lambda found: found[0].endswith("config.json")):
                (dst / name).parent.mkdir(parents=True, exist_ok=True)
                (dst / name).write_bytes(file.read_bytes())
        return
    partial = dst.with_name(dst.name + ".tmp")
    mark = None
    if (partial / _MARK).is_file():
        mark = (partial / _MARK).read_text()
    elif partial.exists() and any(partial.iterdir()):
        raise InputError(f"{partial} is in the way and is no unfinished export; remove it.")
    try:
        if mark != identity:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            (partial / _MARK).write_text(identity)
        yield partial
        (partial / _MARK).unlink()
        if dst.exists():
            dst.rmdir()
        partial.rename(dst)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise InputError(f"{dst} cannot be written: {error.strerror or error}.") from error
        raise
