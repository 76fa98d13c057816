"""Where training samples come from, and how they become batches."""

import dataclasses
import math
from typing import Literal

from dynllava_jax.config.check import (
    check_choice,
    check_fields,
    check_named,
    check_not_negative,
    check_positive,
    check_seed,
)
from dynllava_jax.errors import InputError

IMAGE_SLOTS = (0, 1, 2, 4)
"""M: image slots that a batch may have for each sample."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Sources, what is asked of a sample, and the shapes of batches.

    Attributes:
        source: a LLaVA JSON or JSONL file, a folder of packed shards, or `tfds:NAME[:SPLIT]`; several are mixed.
        images: folder that image paths are relative to; one for all JSON sources, or one each ("" where there is none).
        weights: passes over each source in an epoch: 2.0 doubles a source, 0.5 draws another half of it every epoch;
            () is 1.0 each, where no sample is dropped or doubled.
        adapter: `package:function` from a TFDS example to a LLaVA record, for `tfds:` sources.
        index: folder for the cached token lengths; None: beside the source, for `tfds:` in the user's cache folder.
        require_image: leave out samples without an image, as the official `--requires_image` does.
        truncate: cut samples longer than `max_length`, as the official code does; False: they are bad samples.
        max_length: tokens of a sample at most, image slots included.
        lengths: S, the sequence lengths that batches are padded to; (): chosen from the data.
        max_shapes: shapes (S, M) that one run may compile.
        window: global batches among which samples are sorted by length, so that a batch has little padding.
        on_error: what a sample that cannot be read does: stop the run, or count and fill its row with nothing.
        max_skipped: largest share of skipped samples that a run survives: of all samples when their lengths are
            measured, later of the rows that were read. Each process counts those that its own devices hold, anew at
            each start and in each evaluation, and takes them for 1000, or all rows of the plan, where they are fewer.
        workers: processes that read and prepare samples; 0 reads in the main process.
        prefetch: batches that are ready on the device ahead of the step.
        seed: of the order of samples.
    """

    source: str | tuple[str, ...] = ()
    images: str | tuple[str, ...] | None = None
    weights: tuple[float, ...] = ()
    adapter: str | None = None
    index: str | None = None
    require_image: bool = True
    truncate: bool = True
    max_length: int = 2048
    lengths: tuple[int, ...] = ()
    max_shapes: int = 6
    window: int = 64
    on_error: Literal["fail", "skip"] = "fail"
    max_skipped: float = 0.01
    workers: int = 4
    prefetch: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive(self, "max_length", "max_shapes", "window", "prefetch")
        check_choice(self, "on_error", ("fail", "skip"))
        check_named(self, "source", "adapter", "index")
        check_seed(self, "seed")
        check_not_negative(self, "workers")
        if not 0.0 <= self.max_skipped <= 1.0:
            raise InputError(f"DataConfig.max_skipped is a share from 0 to 1, not {self.max_skipped}.")
        if list(self.lengths) != sorted(set(self.lengths)) or any(length < 1 for length in self.lengths):
            raise InputError(f"DataConfig.lengths must ascend and be 1 or more, not {self.lengths}.")
        if not all(0 < weight < math.inf for weight in self.weights):
            raise InputError(
                f"DataConfig.weights must be above 0 and finite, not {self.weights}; a source can be left out instead."
            )
        if self.weights and len(self.weights) != len(self.sources):
            raise InputError(f"DataConfig.weights has {len(self.weights)} entries for {len(self.sources)} sources.")
        if isinstance(self.images, tuple) and len(self.images) != len(self.sources):
            raise InputError(f"DataConfig.images has {len(self.images)} entries for {len(self.sources)} sources.")

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.source,) if isinstance(self.source, str) else self.source

    @property
    def image_folders(self) -> tuple[str | None, ...]:
        """The image folder of each source."""
        return self.images if isinstance(self.images, tuple) else (self.images,) * len(self.sources)
