"""What a folder of packed shards holds: `manifest.json`, or `unfinished.json` while it is being made."""

import dataclasses
import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from dynllava_jax.errors import InputError

FORMAT, VERSION = "dynllava_jax packed samples", 1
FINISHED, UNFINISHED = "manifest.json", "unfinished.json"


@dataclasses.dataclass(frozen=True)
class Shard:
    """One ArrayRecord file: its pictures' bytes, one record each, then its samples as JSON, one record each."""

    file: str
    samples: int
    pictures: int
    bytes: int
    sha256: str


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The content of a folder. Nothing in it depends on a tokenizer or a template.

    Attributes:
        request: what was asked for: the source and its fingerprint, what was done to pictures, the size of shards.
        shards: in the order of the source.
        read: samples of the source that were read so far, good or bad.
        left_out: ids of bad samples by reason.
    """

    request: Mapping[str, Any]
    shards: tuple[Shard, ...] = ()
    read: int = 0
    left_out: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @property
    def pictures(self) -> int:
        return sum(shard.pictures for shard in self.shards)

    @property
    def bad(self) -> int:
        return sum(map(len, self.left_out.values()))

    @property
    def fingerprint(self) -> str:
        """Of the shards' content and order."""
        return hashlib.sha256(" ".join(shard.sha256 for shard in self.shards).encode()).hexdigest()

    def write(self, file: epath.Path) -> None:
        """Replaces the file as a whole: a reader sees the old content or the new one."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "samples": self.samples,
            "pictures": self.pictures,
        } | dataclasses.asdict(self)
        # Half a character, as of a path whose bytes are no UTF-8, is written as JSON's own escape.
        data = (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "backslashreplace")
        if is_remote(file):
            file.write_bytes(data)  # an object of a bucket appears when it is complete
            return
        scratch = f"{file}.tmp"
        with open(scratch, "wb") as opened:
            opened.write(data)
            opened.flush()
            os.fsync(opened.fileno())
        os.replace(scratch, file)

    @staticmethod
    def read_from(file: epath.Path) -> "Manifest":
        """Raises InputError for a file that is no manifest, or one of another version."""
        try:
            content = json.loads(file.read_text())
            if content["format"] != FORMAT or content["version"] != VERSION:
                found = f"{content['format']!r} version {content['version']!r}"
                raise InputError(f"{file} is {found}, not {FORMAT!r} version {VERSION}; pack the data again.")
            shards = tuple(Shard(**shard) for shard in content["shards"])
            left_out = {reason: tuple(ids) for reason, ids in content["left_out"].items()}
            return Manifest(content["request"], shards, content["read"], left_out)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{file} is no manifest of packed shards ({error}); pack the data again.") from None


def array_record() -> Any:
    """The library that reads and writes shards.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module("array_record.python.array_record_module")
    except ImportError as error:
        raise InputError(f"Packed shards need the extra train ({error}); pip install 'dynllava_jax[train]'.") from None


def is_remote(path: epath.Path | str) -> bool:
    return "://" in str(path)


def folder(path: str) -> epath.Path:
    """A local folder or one on a bucket.

    Raises:
        InputError: a bucket without the package that reaches it.
    """
    if path.startswith("gs://") and not any(map(importlib.util.find_spec, ("gcsfs", "tensorflow"))):
        raise InputError(f"{path} needs gcsfs; pip install 'dynllava_jax[gcs]', or mount the bucket.")
    return epath.Path(path).expanduser()
