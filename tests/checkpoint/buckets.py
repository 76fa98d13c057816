"""A `gs://` of our own for tests: what etils would ask Google for lies in a local folder.

As in a bucket there are no folders but those that something lies in: making one does nothing, and one that is emptied
is gone.
"""

import os
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import fsspec
import pytest
from etils.epath import backend
from fsspec.implementations.local import LocalFileSystem

from dynllava_jax.checkpoint import orbax_items


class _Bucket(LocalFileSystem):
    """Addresses without their scheme are paths below `root`."""

    root = Path()

    @classmethod
    def _strip_protocol(cls, path: str) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        text = str(path)
        return str(cls.root / text.removeprefix("gs://")) if text.startswith("gs://") else text

    def mkdir(self, path: str, create_parents: bool = True, **options: Any) -> None:
        pass

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        pass

    def open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        if "r" not in mode:
            os.makedirs(os.path.dirname(self._strip_protocol(path)), exist_ok=True)
        return super().open(path, mode, **options)

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        super().rm(path, recursive, maxdepth)
        self._forget(path)

    def mv(self, path1: str, path2: str, **options: Any) -> None:
        os.makedirs(os.path.dirname(self._strip_protocol(path2)), exist_ok=True)
        super().mv(path1, path2, **options)
        self._forget(path1)

    def _forget(self, path: str) -> None:
        """The folders above it in which nothing is left, below the bucket itself."""
        for folder in Path(self._strip_protocol(path)).parents:
            if self.root not in folder.parents or folder.parent == self.root or any(folder.iterdir()):
                return
            folder.rmdir()


def simulate(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `gs://NAME/…` mean `root/NAME/…` for etils, and for Orbax through our own door to it.

    The package that reaches real ones need not be there.
    """
    gcsfs = ModuleType("gcsfs")
    gcsfs.__spec__ = ModuleSpec("gcsfs", None)
    monkeypatch.setitem(sys.modules, "gcsfs", gcsfs)
    _Bucket.root = root
    files = _Bucket(skip_instance_cache=True)
    assert isinstance(files, fsspec.AbstractFileSystem)
    monkeypatch.setattr(backend._FileSystemSpecBackend, "fs", lambda self, path: files)
    monkeypatch.setattr(
        backend._FileSystemSpecBackend, "listdir", lambda self, path: [p.name for p in _local(root, path).iterdir()]
    )
    monkeypatch.setattr(orbax_items, "_text", lambda path: str(_local(root, path)))


def _local(root: Path, path: object) -> Path:
    text = str(path)
    return root / text.removeprefix("gs://") if text.startswith("gs://") else Path(text).absolute()
