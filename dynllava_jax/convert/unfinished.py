"""A folder that has its name only when it is whole, and whose making a killed process can take up again."""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from dynllava_jax.checkpoint import store
from dynllava_jax.checkpoint.paths import AnyPath, files_below, remove_tree
from dynllava_jax.errors import InputError

_MARK = "unfinished.txt"
"""Says what an unfinished folder is the beginning of."""


def check_free(dst: AnyPath) -> None:
    """Raises InputError when `dst` is taken; on a bucket, what a killed export left is there under DST's own name."""
    if isinstance(dst, Path):
        store.check_free(dst)
    elif not store.is_free(dst) and ((dst / "config.json").exists() or not (dst / _MARK).exists()):
        raise InputError(f"{dst} exists already and is not overwritten; give another DST or remove it.")


@contextlib.contextmanager
def unfinished(dst: AnyPath, identity: str) -> Iterator[Path]:
    """`DST.tmp`, renamed when the block ends well and removed when it fails; what a kill left of the same is kept.

    For a bucket, a local folder from which files may be sent there early; the rest is sent at the end.
    """
    if not isinstance(dst, Path):
        with _on_bucket(dst, identity), tempfile.TemporaryDirectory(prefix="dynllava-export-") as scratch:
            yield Path(scratch)
            # What says that the folder is a model, its config.json, goes last.
            for name, file in sorted(files_below(Path(scratch)), key=lambda found: found[0] == "config.json"):
                (dst / name).parent.mkdir(parents=True, exist_ok=True)
                (dst / name).write_bytes(file.read_bytes())
        return
    partial = dst.with_name(dst.name + ".tmp")
    mark = None
    if (partial / _MARK).is_file():
        mark = (partial / _MARK).read_text()
    elif not store.is_free(partial):
        raise InputError(f"{partial} is in the way and is no unfinished export; remove it.")
    with _or_nothing(dst, partial):
        if mark != identity:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            (partial / _MARK).write_text(identity)
        yield partial
        (partial / _MARK).unlink()
        if dst.exists():
            dst.rmdir()
        partial.rename(dst)


@contextlib.contextmanager
def _on_bucket(dst: AnyPath, identity: str) -> Iterator[None]:
    """A bucket has no renaming: there, a folder is unfinished as long as it has the mark and no config.json."""
    with _or_nothing(dst, dst):
        if not (dst / _MARK).exists() or (dst / _MARK).read_text() != identity:
            remove_tree(dst)
            dst.mkdir(parents=True, exist_ok=True)
            (dst / _MARK).write_text(identity)
        yield
        (dst / _MARK).unlink()


@contextlib.contextmanager
def _or_nothing(dst: AnyPath, partial: AnyPath) -> Iterator[None]:
    """Removes what there is of it when the block fails."""
    try:
        yield
    except BaseException as error:
        remove_tree(partial)
        if isinstance(error, OSError):
            raise InputError(f"{dst} cannot be written: {error.strerror or error}.") from error
        raise
