"""Writes samples into shards, each of which appears under its name when it is whole."""

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from dynllava_jax.data.manifest import Shard, array_record, is_remote
from dynllava_jax.data.records import Record
from dynllava_jax.errors import InputError

_OPTIONS = "group_size:1,uncompressed"
"""Each record by itself, for random access; pictures are compressed already."""


@contextlib.contextmanager
def writing(folder: Path | epath.Path) -> Iterator[None]:
    """What the system and ArrayRecord, which has only RuntimeError, say of a folder that cannot be written.

    Raises:
        InputError: in their place.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        # ArrayRecord adds where in its own code it was.
        reason = getattr(error, "strerror", None) or str(error).partition(";")[0]
        raise InputError(
            f"{folder} cannot be written: {reason}; see to it that it has room and may be written, then the same "
            "command goes on."
        ) from None


class ShardWriter:
    """One shard after the other. A shard that was not finished is written anew under the same name."""

    def __init__(self, folder: epath.Path, limit: int) -> None:
        """Shards go into `folder` and end with the sample that makes their pictures and texts reach `limit` bytes."""
        self._folder = folder
        self._limit = limit
        self._scratch = tempfile.TemporaryDirectory(prefix="dynllava-pack-") if is_remote(folder) else None
        self._texts: list[bytes] = []
        self._pictures = self._bytes = 0
        self._writer: Any = None

    @property
    def full(self) -> bool:
        return self._bytes >= self._limit

    @property
    def empty(self) -> bool:
        return not self._texts

    def add(self, record: Record, pictures: Sequence[bytes]) -> None:
        """Appends a sample whose `images` become `pictures`.

        Raises:
            InputError: it cannot be written.
        """
        with writing(self._unfinished.parent):
            if self._writer is None:
                self._writer = array_record().ArrayRecordWriter(str(self._unfinished), _OPTIONS)
            for picture in pictures:
                self._writer.write(picture)
        places = list(range(self._pictures, self._pictures + len(pictures)))
        text = json.dumps({"id": record.id, "pictures": places, "turns": record.turns}, ensure_ascii=False).encode()
        self._texts.append(text)
        self._pictures += len(pictures)
        self._bytes += len(text) + sum(map(len, pictures))

    def finish(self, number: int) -> Shard:
        """Closes the shard and gives it its name.

        Raises:
            InputError: it cannot be written.
        """
        file = self._unfinished
        with writing(file.parent):
            for text in self._texts:
                self._writer.write(text)
            self._writer.close()
            with file.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
                os.fsync(opened.fileno())
        with writing(self._folder):
            shard = Shard(f"{number:05}.arrayrecord", len(self._texts), self._pictures, file.stat().st_size, digest)
            if self._scratch is None:
                os.replace(file, self._folder / shard.file)
            else:
                epath.Path(file).copy(self._folder / shard.file, overwrite=True)
        self._texts, self._pictures, self._bytes, self._writer = [], 0, 0, None
        return shard

    def close(self) -> None:
        """Drops what is not finished."""
        if self._writer is not None:
            with contextlib.suppress(RuntimeError):  # of a full disk; it was said where it was written
                self._writer.close()
            self._unfinished.unlink(missing_ok=True)
        if self._scratch is not None:
            self._scratch.cleanup()

    @property
    def _unfinished(self) -> Path:
        return Path(self._scratch.name if self._scratch else os.fspath(self._folder)) / "unfinished.arrayrecord"
