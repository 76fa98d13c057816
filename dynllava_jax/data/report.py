"""A walk over a whole data set before any training: what is in it, and which samples cannot be used."""

import collections
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from dynllava_jax.data.preparation import Preparation
from dynllava_jax.data.records import SampleError
from dynllava_jax.data.shards import ShardSource
from dynllava_jax.data.source import Source
from dynllava_jax.data.workers import in_order

EDGES = (128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192)
"""Upper ends of the classes of the length histogram; the last class has none."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What was found.

    Attributes:
        samples: all of them, bad ones included.
        with_image, without_image: of those that could be read.
        bad: (id, detail) of the samples that cannot be used, by reason.
        lengths: samples by tokens before cutting, image slots included; the class's upper end, "more" for the last.
            None when no tokenizer was given.
        longest: tokens of the longest.
        cut: ids of samples longer than the limit.
        repeated: how often an id stands, for ids that stand more than once. No fault: nothing depends on ids.
        left_out: ids that are not in the shards because they were bad when they were packed, by reason.
        damaged: shards whose content is not what was packed.
    """

    samples: int
    with_image: int
    without_image: int
    bad: Mapping[str, tuple[tuple[str, str], ...]]
    lengths: Mapping[str, int] | None
    longest: int | None
    cut: tuple[str, ...]
    repeated: Mapping[str, int]
    left_out: Mapping[str, tuple[str, ...]]
    damaged: tuple[str, ...]

    @property
    def bad_count(self) -> int:
        return sum(map(len, self.bad.values()))

    @property
    def ok(self) -> bool:
        return not self.bad and not self.damaged

    def as_json(self) -> dict[str, Any]:
        return {"ok": self.ok, "bad_count": self.bad_count, **dataclasses.asdict(self)}


def check(
    source: Source,
    preparation: Preparation | None,
    *,
    pictures: bool = True,
    workers: int = 0,
    on_sample: Callable[[], None] = lambda: None,
) -> Report:
    """Reads every sample as training would.

    Args:
        source: where they come from.
        preparation: how they become tokens and pixels; None leaves tokens and lengths out.
        pictures: decode the pictures too (most of the time), and compare the shards' checksums.
        workers: processes.
        on_sample: is told when a sample is done.
    """
    seen: list[_Seen] = []
    for one in in_order(_Look(source, preparation, pictures), range(len(source)), workers):
        seen.append(one)
        on_sample()
    bad: dict[str, list[tuple[str, str]]] = collections.defaultdict(list)
    for one in seen:
        if one.error is not None:
            bad[one.error.reason].append((one.id, one.error.detail))
    lengths = np.array([one.length for one in seen if one.length is not None])
    limit = preparation.max_length if preparation is not None else None
    counts = collections.Counter(one.id for one in seen)
    return Report(
        samples=len(seen),
        with_image=sum(one.images is not None and one.images > 0 for one in seen),
        without_image=sum(one.images == 0 for one in seen),
        bad={reason: tuple(found) for reason, found in bad.items()},
        lengths=None if preparation is None else _histogram(lengths),
        longest=int(lengths.max()) if lengths.size else None,
        cut=tuple(one.id for one in seen if limit is not None and one.length is not None and one.length > limit),
        repeated={id: count for id, count in counts.items() if count > 1},
        left_out=source.manifest.left_out if isinstance(source, ShardSource) else {},
        damaged=source.damaged() if isinstance(source, ShardSource) and pictures else (),
    )


def _histogram(lengths: np.ndarray) -> dict[str, int]:
    classes = np.bincount(np.searchsorted(EDGES, lengths), minlength=len(EDGES) + 1)
    return dict(zip([*map(str, EDGES), "more"], map(int, classes), strict=True))


class _Seen(NamedTuple):
    id: str
    images: int | None = None
    length: int | None = None
    error: SampleError | None = None


@dataclasses.dataclass(frozen=True)
class _Look:
    """Looks at one sample, in whatever process."""

    source: Source
    preparation: Preparation | None
    pictures: bool

    def __call__(self, index: int) -> _Seen:
        try:
            record = self.source.record(index)
        except SampleError as error:
            return _Seen(error.id, error=error)
        images, length = len(record.images), None
        try:
            if self.preparation is not None:
                _, length = self.preparation.sample(record)
            if self.pictures and self.preparation is not None:
                self.preparation.pixels(self.source, record)
            elif self.pictures:
                for number in range(images):
                    self.source.picture(record, number)
        except SampleError as error:
            return _Seen(record.id, images, length, error)
        return _Seen(record.id, images, length)
