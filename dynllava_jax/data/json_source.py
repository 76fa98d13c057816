"""LLaVA's own format: a JSON list or JSON lines, and a folder of pictures.

Only the places of the samples in the file are kept in memory, so that large files open in seconds and worker
processes share the rest.

N samples.
"""

import hashlib
import json
import os
import weakref
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from PIL import Image

from dynllava_jax.data.image import load_image
from dynllava_jax.data.json_places import places
from dynllava_jax.data.records import Record, SampleError, read_record
from dynllava_jax.errors import InputError


class JsonSource:
    """A `source.Source`. The file must not change while it is open."""

    def __init__(self, file: Path, images: Path, spans: Int[np.ndarray, "N 2"]) -> None:
        self.name = str(file)
        self._images = os.path.abspath(images)
        self._spans = spans
        self._opened: int | None = None

    @staticmethod
    def open(file: str, images: str | None) -> "JsonSource":
        """Finds the samples of `file`; `images` None is the folder that it lies in.

        Raises:
            InputError: a file or folder is missing or on a bucket, or the file is no JSON list and no JSON lines.
        """
        for path in (file, images or ""):
            if "://" in path:
                packed = f"{path.rsplit('/', 1)[0]}/packed"
                raise InputError(
                    f"{path}: JSON and loose images cannot be read from a bucket; make shards of a local copy with "
                    f"'dynllava data pack FILE {packed} --images DIR' and give {packed} as data.source."
                )
        path, folder = Path(file).expanduser(), Path(images).expanduser() if images else Path(file).parent.expanduser()
        if not path.is_file():
            raise InputError(f"The data source {file} does not exist; check data.source.")
        if not folder.is_dir():
            raise InputError(f"The image folder {images} of {file} does not exist; check data.images.")
        if not len(spans := places(path)):
            raise InputError(f"The data source {file} holds no sample.")
        return JsonSource(path, folder, spans)

    def __len__(self) -> int:
        return len(self._spans)

    def record(self, index: int) -> Record:
        start, end = map(int, self._spans[index])
        where = f"{self.name}, sample {index}"
        if len(text := self._bytes(start, end)) < end - start:
            raise SampleError(where, "data file cut short", f"it ended at byte {end} or later when the run began")
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise SampleError(where, "malformed record", f"no JSON: {error}") from None
        return read_record(value, where)

    def picture(self, record: Record, number: int) -> Image.Image:
        try:
            return load_image(self._path(record, number))
        except SampleError:
            raise
        except InputError as error:
            raise SampleError(record.id, "unreadable image", str(error).rstrip(".")) from None

    def encoded(self, record: Record, number: int) -> bytes:
        """The bytes of a picture's file."""
        path = self._path(record, number)
        try:
            return Path(path).read_bytes()
        except OSError as error:
            raise SampleError(record.id, "unreadable image", f"{path}: {error.strerror}") from None

    def fingerprint(self) -> str:
        with open(self.name, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def _path(self, record: Record, number: int) -> str:
        image = record.images[number]
        if not isinstance(image, str):
            raise SampleError(record.id, "malformed record", "its image is no path")
        # Links inside the folder are the user's own; what the file says must not lead out of it.
        path = os.path.normpath(os.path.join(self._images, image))
        if not path.startswith(os.path.join(self._images, "")):
            raise SampleError(record.id, "image path leaves the folder", f"{image} is not below {self._images}")
        if not os.path.isfile(path):
            raise SampleError(record.id, "missing image", f"{path} does not exist")
        return path

    def _bytes(self, start: int, end: int) -> bytes:
        # Kept open, so that a file that takes its name is not read in its place; but not mapped into memory: the system
        # kills a process that looks at a part that the file has lost since.
        if self._opened is None:
            self._opened = os.open(self.name, os.O_RDONLY)
            weakref.finalize(self, os.close, self._opened)
        return os.pread(self._opened, end - start, start)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}
