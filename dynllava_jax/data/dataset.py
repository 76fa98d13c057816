"""All samples of a run: the sources of a `DataConfig`, joined, measured and filtered.

Axis legend: n samples, numbered 0 … n-1; H W pixels.
"""

import collections
import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float, Int

from dynllava_jax.config.data import DataConfig
from dynllava_jax.config.model import ImagePrep
from dynllava_jax.data.lengths import index_folder, sample_lengths
from dynllava_jax.data.preparation import Preparation
from dynllava_jax.data.records import SampleError
from dynllava_jax.data.shards import ShardSource
from dynllava_jax.data.source import Source, open_source
from dynllava_jax.data.spans import Sample
from dynllava_jax.data.templates import Template
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.errors import InputError


class Loaded(NamedTuple):
    """A sample that is ready for a batch."""

    id: str
    sample: Sample
    pixels: list[Float[np.ndarray, "H W 3"]]


class Report(NamedTuple):
    """What became of the samples of all sources.

    Attributes:
        samples: how many there are.
        used: how many are left.
        truncated: how many of these are cut at `max_length`.
        without_image: left out because of `require_image`.
        failures: left out because they cannot be used.
        not_packed: not counted above: bad already when their source was packed, so that its shards lack them.
    """

    samples: int
    used: int
    truncated: int
    without_image: int
    failures: tuple[SampleError, ...]
    not_packed: int = 0

    def __str__(self) -> str:
        reasons = collections.Counter(failure.reason for failure in self.failures)
        left_out = {"without image": self.without_image, **dict(reasons.most_common())}
        spelled = ", ".join(f"{count} {reason}" for reason, count in left_out.items() if count)
        return (
            f"{self.used} of {self.samples} samples, {self.truncated} of them cut at data.max_length; "
            f"left out: {spelled or 'none'}"
        ) + (f"; {self.not_packed} more were bad when they were packed" if self.not_packed else "")


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """Samples by number; goes into worker processes. Made by `open_dataset`.

    Attributes:
        sources: where they come from.
        preparation: how they become tokens and pixels.
        source_of: which source each is from.
        index_of: its number there.
        lengths: tokens, image slots included, after cutting.
        image_counts: images.
        report: what was left out, and why.
        keys: what identifies the content of each source.
    """

    sources: tuple[Source, ...]
    preparation: Preparation
    source_of: Int[np.ndarray, " n"]
    index_of: Int[np.ndarray, " n"]
    lengths: Int[np.ndarray, " n"]
    image_counts: Int[np.ndarray, " n"]
    report: Report
    keys: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.lengths)

    def load(self, number: int) -> Loaded:
        """Reads and prepares a sample.

        Raises:
            SampleError: it cannot be read any more, or a picture cannot.
        """
        source = self.sources[self.source_of[number]]
        record = source.record(int(self.index_of[number]))
        sample, _ = self.preparation.sample(record)
        return Loaded(record.id, sample, self.preparation.pixels(source, record))

    def hold_out(self, count: int) -> "tuple[Dataset, Dataset]":
        """All but `count` samples, and these: from the end of each source, by its share.

        Raises:
            InputError: nothing would be left.
        """
        if count >= len(self):
            raise InputError(f"eval.samples {count} leaves none of the {len(self)} samples to train on; lower it.")
        ends = np.cumsum(np.bincount(self.source_of, minlength=len(self.sources)))
        taken = np.diff(np.round(ends * count / len(self)).astype(np.int64), prepend=0)
        held = np.zeros(len(self), bool)
        for end, size in zip(ends, taken, strict=True):
            held[end - size : end] = True
        return self._only(~held), self._only(held)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes when a sample, its number, its length or its preparation does."""
        digest = hashlib.sha256(repr((self.keys, self.preparation.image)).encode())
        for array in (self.source_of, self.index_of):
            digest.update(array.astype("<i8").tobytes())
        return digest.hexdigest()

    def _only(self, chosen: np.ndarray) -> "Dataset":
        names = ("source_of", "index_of", "lengths", "image_counts")
        return dataclasses.replace(self, **{name: getattr(self, name)[chosen] for name in names})


def open_dataset(
    config: DataConfig,
    tokenizer: Tokenizer,
    template: Template,
    image_tokens: int,
    image: ImagePrep,
    beside: Sequence[str] = (),
) -> Dataset:
    """Opens every source of `config`, measures its samples (or reads its index), and leaves out what must be.

    Args:
        config: sources, limits and filters.
        tokenizer, template, image_tokens, image: what the model asks for, see `Preparation`.
        beside: sources that are opened apart, for which `config.adapter` may be meant.

    Raises:
        InputError: a source cannot be opened, a sample cannot be used (`on_error` "fail"), too many cannot, or none is
            left.
    """
    if not config.sources:
        raise InputError("data.source names nothing to train on; give a LLaVA JSON file, shards or tfds:NAME.")
    preparation = Preparation(tokenizer, template, image_tokens, image, config.max_length, config.truncate)
    sources = tuple(_open(config, *pair, beside) for pair in zip(config.sources, config.image_folders, strict=True))
    return join(sources, preparation, config, [index_folder(spec, config.index) for spec in config.sources])


def join(
    sources: Sequence[Source], preparation: Preparation, config: DataConfig, folders: Sequence[epath.PathLike]
) -> Dataset:
    """As `open_dataset`, with sources of any kind and the folder of each one's index."""
    measured = [
        sample_lengths(source, preparation, folder, config.workers)
        for source, folder in zip(sources, folders, strict=True)
    ]
    failures = tuple(failure for each in measured for failure in each.failures.values())
    sizes = [each.lengths.size for each in measured]
    _check_failures(failures, sum(sizes), config)
    lengths, uncut, images = (
        np.concatenate([getattr(each, name) for each in measured]) for name in ("lengths", "uncut", "image_counts")
    )
    usable = lengths > 0
    wanted = usable & (images > 0) if config.require_image else usable
    report = Report(
        samples=sum(sizes),
        used=int(wanted.sum()),
        truncated=int((uncut > lengths)[wanted].sum()),
        without_image=int(usable.sum() - wanted.sum()),
        failures=failures,
        not_packed=sum(source.manifest.bad for source in sources if isinstance(source, ShardSource)),
    )
    if not report.used:
        hint = "; data.require_image=False takes samples without an image too" if report.without_image else ""
        raise InputError(f"{', '.join(source.name for source in sources)}: no sample is left: {report}{hint}.")
    return Dataset(
        sources=tuple(sources),
        preparation=preparation,
        source_of=np.repeat(np.arange(len(sizes)), sizes)[wanted],
        index_of=np.concatenate([np.arange(size) for size in sizes])[wanted],
        lengths=lengths[wanted],
        image_counts=images[wanted],
        report=report,
        keys=tuple(each.key for each in measured),
    )


def _check_failures(failures: tuple[SampleError, ...], samples: int, config: DataConfig) -> None:
    if not failures:
        return
    told = f"{str(failures[0]).rstrip('.')}; of {samples} samples {len(failures)} cannot be used"
    if config.on_error == "fail":
        raise InputError(f"{told}: 'dynllava data check' lists them, data.on_error='skip' leaves them out.")
    if len(failures) > config.max_skipped * samples:
        raise InputError(
            f"{told}, more than data.max_skipped {config.max_skipped:g}; 'dynllava data check' lists them."
        )


def _open(config: DataConfig, spec: str, images: str | None, beside: Sequence[str]) -> Source:
    """What is given once for all sources goes to those of its kind; where there is none, the source refuses it."""
    adapter = config.adapter
    if isinstance(config.images, str) and not _is_json(spec) and any(map(_is_json, config.sources)):
        images = None
    if not spec.startswith("tfds:") and any(each.startswith("tfds:") for each in (*config.sources, *beside)):
        adapter = None
    return open_source(spec, images or None, adapter)


def _is_json(spec: str) -> bool:
    return spec.endswith((".json", ".jsonl"))
