"""A `gs://` of our own for tests: what etils would ask Google for lies in a local folder."""

from pathlib import Path

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


def simulate(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `gs://NAME/…` mean `root/NAME/…` for etils, and for Orbax through our own door to it."""
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
