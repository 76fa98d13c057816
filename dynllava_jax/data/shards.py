"""A folder of packed shards as a source."""

import hashlib
import json
from typing import Any

import numpy as np
from PIL import Image

from dynllava_jax.config.json_file import is_whole
from dynllava_jax.data.image import load_image
from dynllava_jax.data.manifest import FINISHED, UNFINISHED, Manifest, Shard, array_record, folder, is_remote
from dynllava_jax.data.records import Record, SampleError
from dynllava_jax.data.templates import Turn
from dynllava_jax.errors import InputError, shown

_RANDOM_ACCESS = "readahead_buffer_size:0,max_parallelism:0"


class ShardSource:
    """A `source.Source`, on a disk or a bucket. Reading a conversation reads no picture."""

    def __init__(self, name: str, manifest: Manifest) -> None:
        self.name = name
        self.manifest = manifest
        self._ends = np.cumsum([shard.samples for shard in manifest.shards])
        self._readers: dict[int, Any] = {}

    @staticmethod
    def open(name: str) -> "ShardSource":
        """Reads the manifest and compares the files' sizes with it; `damaged` compares their content.

        Raises:
            InputError: no such folder, packing that was not finished, a shard that is missing or cut short, or no
                library to read them with.
        """
        path = folder(name)
        if not (path / FINISHED).exists():
            if (path / UNFINISHED).exists():
                raise InputError(f"Packing into {name} was not finished; run the same 'dynllava data pack' again.")
            raise InputError(
                f"The data source {name} is no JSON file and no folder with {FINISHED}; check data.source, or make "
                "shards with 'dynllava data pack'."
            )
        manifest = Manifest.read_from(path / FINISHED)
        for shard in manifest.shards:
            file = path / shard.file
            size = file.stat().length if file.exists() else None
            if size != shard.bytes:
                found = "is missing" if size is None else f"has {size} bytes instead of {shard.bytes}"
                raise InputError(f"{file} {found}; copy it again, or pack the data again.")
        if not manifest.samples:
            raise InputError(f"The data source {name} holds no sample.")
        array_record()  # else each sample would be called damaged
        return ShardSource(name, manifest)

    def __len__(self) -> int:
        return self.manifest.samples

    def record(self, index: int) -> Record:
        number = int(np.searchsorted(self._ends, index, side="right"))
        shard = self.manifest.shards[number]
        place = index - int(self._ends[number]) + shard.samples
        where = f"{shard.file}, sample {place}"
        try:
            value = json.loads(self._read(number, shard.pictures + place))
            id, pictures, turns = value["id"], value["pictures"], value["turns"]
            if not isinstance(id, str) or not isinstance(pictures, list) or not isinstance(turns, list) or not turns:
                raise ValueError(f"{shown(value)} is no packed sample")
            if not all(is_whole(picture) and picture < shard.pictures for picture in pictures):
                raise ValueError(f"its pictures {shown(pictures)} are not among the shard's {shard.pictures}")
            if not all(isinstance(turn, list) and len(turn) == 2 and all(map(_is_text, turn)) for turn in turns):
                raise ValueError(f"its turns {shown(turns)} are no questions with answers")
            return Record(
                id, tuple(f"{number}:{picture}" for picture in pictures), tuple(Turn(*turn) for turn in turns)
            )
        except (RuntimeError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise SampleError(where, "damaged shard", f"{error}") from None

    def encoded(self, record: Record, number: int) -> bytes:
        """The bytes of a picture's file."""
        place = record.images[number]
        assert isinstance(place, str)
        shard, picture = map(int, place.split(":"))
        try:
            return self._read(shard, picture)
        except RuntimeError as error:
            problem = f"{self.manifest.shards[shard].file}: {error}"
            raise SampleError(record.id, "damaged shard", problem) from None

    def picture(self, record: Record, number: int) -> Image.Image:
        try:
            return load_image(self.encoded(record, number))
        except SampleError:
            raise
        except InputError as error:
            raise SampleError(record.id, "unreadable image", str(error).rstrip(".")) from None

    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    def damaged(self) -> tuple[str, ...]:
        """The shards whose content is no longer what was packed (reads them whole)."""
        return tuple(shard.file for shard in self.manifest.shards if self._sha256(shard) != shard.sha256)

    def _sha256(self, shard: Shard) -> str:
        digest = hashlib.sha256()
        with (folder(self.name) / shard.file).open("rb") as file:
            while block := file.read(2**22):
                digest.update(block)
        return digest.hexdigest()

    def _read(self, number: int, place: int) -> bytes:
        reader = self._readers.get(number)
        if reader is None:
            shard = self.manifest.shards[number]
            path = folder(self.name) / shard.file
            # Given as the library wants it: it reads buckets by itself and reports a missing file as an empty one.
            reader = array_record().ArrayRecordReader(
                str(path) if is_remote(path) else str(path.resolve()), _RANDOM_ACCESS
            )
            if reader.num_records() != shard.pictures + shard.samples:
                raise RuntimeError(f"it has {reader.num_records()} records instead of {shard.pictures + shard.samples}")
            self._readers[number] = reader
        return reader.read([place])[0]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_readers": {}}


def _is_text(text: Any) -> bool:
    return isinstance(text, str)
