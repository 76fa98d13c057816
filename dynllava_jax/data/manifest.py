"""What a folder of packed shards holds: `manifest.json`, or `unfinished.json` while it is being made."""

import dataclasses
import hashlib
import importlib.util
import json
import os
from collections.abc import Mapping
from typing import Any

from etils import epath

from dynllava_jax.config.json_file import is_whole, read_object, wrong
from dynllava_jax.errors import InputError, shown

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
        content = read_object(file, _AGAIN)
        if content.get("format") != FORMAT or content.get("version") != VERSION:
            if not {"format", "version"} <= content.keys():
                raise InputError(f"{file} is no manifest of packed shards: it lacks format or version; {_AGAIN}.")
            found = f"{shown(content['format'])} version {shown(content['version'])}"
            raise InputError(f"{file} is {found}, not {FORMAT!r} version {VERSION}; {_AGAIN}.")
        shards, left_out = content.get("shards"), content.get("left_out")
        if not isinstance(shards, list):
            raise wrong(file, "shards", "a list", shards, _AGAIN)
        if not isinstance(left_out, dict) or not all(map(_is_ids, left_out.values())):
            raise wrong(file, "left_out", "ids by reason", left_out, _AGAIN)
        if not isinstance(content.get("request"), dict):
            raise wrong(file, "request", "an object", content.get("request"), _AGAIN)
        if not is_whole(content.get("read")):
            raise wrong(file, "read", "a count", content.get("read"), _AGAIN)
        made = Manifest(
            content["request"],
            tuple(_shard(file, number, shard) for number, shard in enumerate(shards)),
            content["read"],
            {reason: tuple(ids) for reason, ids in left_out.items()},
        )
        for key in ("fingerprint", "samples", "pictures"):
            if content.get(key) != getattr(made, key):
                raise wrong(file, key, f"{getattr(made, key)!r}, which its shards make", content.get(key), _AGAIN)
        return made


_AGAIN = "copy it again, or pack the data again"


def _shard(file: epath.Path, number: int, entry: Any) -> Shard:
    """One entry of a manifest's list of shards."""
    given = entry if isinstance(entry, dict) else {}
    for field in dataclasses.fields(Shard):
        value = given.get(field.name)
        if not (isinstance(value, str) and value if field.type is str else is_whole(value)):
            wanted = "a text" if field.type is str else "a count"
            raise wrong(file, f"shards[{number}].{field.name}", wanted, value, _AGAIN)
    return Shard(**{field.name: given[field.name] for field in dataclasses.fields(Shard)})


def _is_ids(ids: Any) -> bool:
    return isinstance(ids, list) and all(isinstance(id, str) for id in ids)


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
        InputError: a bucket without the package that reaches it, or an address that is no bucket's.
    """
    if path.startswith("gs://") and not any(map(importlib.util.find_spec, ("gcsfs", "tensorflow"))):
        raise InputError(f"{path} needs gcsfs; pip install 'dynllava_jax[gcs]', or mount the bucket.")
    try:
        return epath.Path(path).expanduser()
    except KeyError:  # the kind of address, to which etils has no way
        raise InputError(f"{path}: nothing is read at such addresses; give a path, or gs://….") from None
