"""Folders here and on buckets (`gs://…`): pathlib for the first, etils for the second.

`pathlib.Path("gs://bucket/x")` is `gs:/bucket/x`, so an address is kept as text until it passes through here.
"""

import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from etils import epath

from dynllava_jax.config.check import check_type
from dynllava_jax.errors import InputError, shown

AnyPath: TypeAlias = Path | epath.Path


def as_path(where: str | os.PathLike, name: str = "The name of a folder") -> AnyPath:
    """The path, with the `~` at its start that shells leave alone in an option such as `--out=~/FILE`.

    Raises:
        InputError: it is no path, is empty, which pathlib takes for the current folder, lies at the home of nobody or
            at an address that is no bucket's, or can be no file's name.
    """
    check_type(where, str | os.PathLike, name)
    text = os.fspath(where)
    if not text:
        raise InputError(f"{name} is empty; name something, or leave it out.")
    if is_remote(text):
        try:
            return epath.Path(text)
        except KeyError:  # the kind of address, to which etils has no way
            raise InputError(f"{name} {text}: nothing is read at such addresses; give a path, or gs://….") from None
    path = os.path.expanduser(text)
    if path.startswith("~"):
        raise InputError(f"{name} {text}: nobody here is called {path.split('/')[0]}; give another path.")
    try:
        os.lstat(path)
    except (OSError, ValueError) as error:  # the latter: a NUL
        if not isinstance(error, OSError) or error.errno == errno.ENAMETOOLONG:
            told = f"{shown(text)} is nothing that a file can be called ({getattr(error, 'strerror', None) or error})"
            raise InputError(f"{name} {told}; give another.") from None
    return Path(path)


def reachable(path: AnyPath) -> AnyPath:
    """The path; raises InputError where a bucket cannot be asked about it: no network, no right to, no such bucket."""
    if is_remote(path):
        try:
            path.exists()
        except Exception as error:  # those of the bucket's library and of its HTTP client
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise InputError(
                f"{path} cannot be reached ({reason}); look at the address, the network and the bucket's credentials."
            ) from error
    return path


def is_remote(where: str | os.PathLike) -> bool:
    return "://" in os.fspath(where)


def size_of(file: AnyPath) -> int:
    """Bytes of a file."""
    return file.stat().length if isinstance(file, epath.Path) else file.stat().st_size


def remove_tree(folder: AnyPath) -> None:
    """Removes a folder with all that is in it; it need not be there."""
    if isinstance(folder, Path):
        shutil.rmtree(folder, ignore_errors=True)
    elif folder.exists():
        folder.rmtree()


def files_below(folder: AnyPath, prefix: str = "") -> Iterator[tuple[str, AnyPath]]:
    """Every file of a folder by its relative name."""
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            yield from files_below(path, f"{prefix}{path.name}/")
        else:
            yield prefix + path.name, path
