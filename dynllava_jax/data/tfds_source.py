"""A prepared TFDS data set as a source, read at random and without TensorFlow.

TFDS must have written it as ArrayRecord (`tfds build --file_format=array_record`).
"""

import hashlib
import importlib
import inspect
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

from PIL import Image

from dynllava_jax.data.image import load_image
from dynllava_jax.data.manifest import folder
from dynllava_jax.data.records import Record, SampleError, read_record
from dynllava_jax.errors import InputError, shown

_SPEC = re.compile(r"tfds:(?P<name>(?:\w+://)?.+?(?::\d+\.\d+\.\d+)?)(?::(?P<split>[A-Za-z]\w*(?:\[[^]]*])?))?")
"""NAME may be a name with a version, a folder, or an address on a bucket; all of them may hold a colon."""


class TfdsSource:
    """A `source.Source`; the data set is opened when the first sample is read, in each process for itself."""

    def __init__(self, name: str, adapter: str) -> None:
        self.name = name
        self._adapter = adapter
        self._examples: Sequence[Any] | None = None
        self._adapt: Callable[[Any], Any] | None = None
        self._length = len(self._open())

    @staticmethod
    def open(name: str, adapter: str | None) -> "TfdsSource":
        """Finds `tfds:NAME[:SPLIT]`; SPLIT is "train" by default and may be a slice such as `train[:10%]`.

        Raises:
            InputError: no adapter or none of that name, the package is not installed, or the data set or split is
                not there or not in a format with random access.
        """
        if adapter is None:
            raise InputError(
                f"{name} needs data.adapter = 'package:function', which makes a LLaVA sample of an example; "
                "dynllava_jax.data.adapters has vqa and coco_captions."
            )
        return TfdsSource(name, adapter)

    def __len__(self) -> int:
        return self._length

    def record(self, index: int) -> Record:
        where = f"{self.name}, example {index}"
        examples = self._open()
        assert self._adapt is not None
        try:
            value = self._adapt(examples[index])
        except Exception as error:  # damaged bytes, or what a user's function raises
            problem = f"{where}: {type(error).__name__}: {error}"
            raise SampleError(where, "example that the adapter cannot use", problem) from error
        return read_record(value, where)

    def picture(self, record: Record, number: int) -> Image.Image:
        try:
            return load_image(record.images[number])
        except InputError as error:
            raise SampleError(record.id, "unreadable image", str(error).rstrip(".")) from None

    def encoded(self, record: Record, number: int) -> bytes:
        """The bytes of a picture's file; an array becomes PNG."""
        image = record.images[number]
        if isinstance(image, bytes):
            return image
        file = io.BytesIO()
        self.picture(record, number).save(file, "PNG")
        return file.getvalue()

    def fingerprint(self) -> str:
        """Of what TFDS notes about the data set, which is never changed under one version, and of the adapter."""
        self._open()
        path, _ = _find(self.name)
        digest = hashlib.sha256(f"{self.name} {self._adapter} {self._length}".encode())
        for file in ("dataset_info.json", "features.json"):
            digest.update((folder(path) / file).read_bytes())
        module = inspect.getmodule(self._adapt)
        digest.update(inspect.getsource(module).encode() if module is not None else b"")
        return digest.hexdigest()

    def _open(self) -> Sequence[Any]:
        if self._examples is None:
            self._adapt = _load_adapter(self._adapter)
            self._examples = _open_examples(self.name)
        return self._examples

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_examples": None, "_adapt": None}


def _load_adapter(spec: str) -> Callable[[Any], Any]:
    module, separator, function = spec.partition(":")
    try:
        found = getattr(importlib.import_module(module), function) if separator else None
    except (ImportError, ValueError, AttributeError) as error:
        raise InputError(f"data.adapter {spec!r} cannot be imported: {error}.") from None
    if not callable(found):
        raise InputError(f"data.adapter {spec!r} must be 'package:function'.")
    return found


def _find(spec: str) -> tuple[str, str]:
    """Folder of a prepared data set, and the split."""
    from tensorflow_datasets.core import read_only_builder, registered

    match = _SPEC.fullmatch(spec)
    if match is None:
        raise InputError(f"{spec} must be tfds:NAME or tfds:NAME:SPLIT.")
    name, split = match["name"], match["split"] or "train"
    if (folder(name) / "dataset_info.json").exists():
        return str(folder(name)), split
    try:
        return str(read_only_builder.builder_from_files(name).data_path), split
    except (registered.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise InputError(
            f"{spec}: no prepared data set {name} is found ({str(error).splitlines()[0]}); prepare it where TensorFlow "
            "is installed, with 'tfds build --file_format=array_record', and give its folder or TFDS_DATA_DIR."
        ) from None


def _open_examples(spec: str) -> Sequence[Any]:
    try:
        import tensorflow_datasets as tfds
        from tensorflow_datasets.core import features, read_only_builder
    except ImportError as error:
        raise InputError(f"{spec} needs the extra tfds ({error}); pip install 'dynllava_jax[tfds]'.") from None
    path, split = _find(spec)
    try:
        builder = read_only_builder.builder_from_directory(path)
        known = builder.info.features
    except Exception as error:  # of its JSON parser, or of the feature that a damaged entry names
        problem = shown(f"{type(error).__name__}: {error}")
        raise InputError(
            f"{path}: its dataset_info.json or features.json is damaged ({problem}); copy the data set again, or "
            "prepare it again."
        ) from None
    # Pictures stay the bytes of their files until someone looks at them.
    pictures = {
        key: tfds.decode.SkipDecoding()
        for key, feature in (known.items() if isinstance(known, features.FeaturesDict) else ())
        if isinstance(feature, features.Image)
    }
    try:
        examples = builder.as_data_source(split, decoders=pictures)  # pyright: ignore[reportCallIssue]
        count = len(examples)
    except (NotImplementedError, ValueError, KeyError, OSError) as error:
        raise InputError(f"{spec} cannot be read at random: {str(error).splitlines()[0]}") from None
    if not count:
        raise InputError(f"{spec} holds no example.")
    return examples
