"""Where training samples come from: anything that gives a conversation and its pictures by number."""

import os
from typing import Protocol, runtime_checkable

from PIL import Image

from dynllava_jax.data.records import Record, SampleError
from dynllava_jax.errors import InputError

__all__ = ["Record", "SampleError", "Source", "open_source"]

_TFDS = "tfds:"


@runtime_checkable
class Source(Protocol):
    """Samples with random access; cheap to open, and to pickle into worker processes.

    Attributes:
        name: how the user named it; stands in messages.
    """

    name: str

    def __len__(self) -> int: ...

    def record(self, index: int) -> Record:
        """The conversation of sample `index`, without decoding its pictures.

        Raises:
            SampleError: it is damaged or no LLaVA sample.
        """
        ...

    def picture(self, record: Record, number: int) -> Image.Image:
        """The RGB picture `number` (from 0) of a record of this source.

        Raises:
            SampleError: it is missing, unreadable or outside the image folder.
        """
        ...

    def fingerprint(self) -> str:
        """Changes when the conversations, their order or their number change."""
        ...


def open_source(spec: str, images: str | None = None, adapter: str | None = None) -> Source:
    """Opens what `data.source` names.

    Args:
        spec: a LLaVA JSON or JSONL file, a folder of packed shards (or its `gs://` address), or `tfds:NAME[:SPLIT]`.
        images: folder that image paths are relative to, for JSON; None: the folder of the JSON file.
        adapter: `package:function` from a TFDS example to a LLaVA sample, for `tfds:`.

    Raises:
        InputError: nothing of the kind is there, it is damaged, or an option does not belong to it.
    """
    if spec.startswith(_TFDS):
        from dynllava_jax.data.tfds_source import TfdsSource

        _without(spec, images=images)
        return TfdsSource.open(spec, adapter)
    _without(spec, adapter=adapter)
    if spec.endswith((".json", ".jsonl")) or os.path.isfile(spec):
        from dynllava_jax.data.json_source import JsonSource

        return JsonSource.open(spec, images)
    from dynllava_jax.data.shards import ShardSource

    _without(spec, images=images)
    return ShardSource.open(spec)


def _without(spec: str, **options: str | None) -> None:
    for name, value in options.items():
        if value is not None:
            raise InputError(f"{spec} takes no data.{name}, but {value!r} was given; leave it out.")
