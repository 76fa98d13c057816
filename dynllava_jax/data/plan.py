"""The plan of a run: which samples form which batch, and in what shape.

A pure function of lengths, seed and sizes: every host computes the same plan and reads its rows of it, so a run
resumes at any step, on any number of hosts.

Axis legend: n samples, e of them drawn for an epoch, T steps, B rows of a global batch.
"""

import dataclasses
import hashlib
import math
import sys
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dynllava_jax.config.data import IMAGE_SLOTS, DataConfig
from dynllava_jax.data.shapes import Shape, assign_shapes, candidate_lengths, choose_shapes, slots_for
from dynllava_jax.errors import InputError

FILLER = -1
"""In the place of a sample: a row that only fills the last batch of an epoch."""

_LONGEST = 1 << 32
"""More tokens than any sample has."""


@dataclasses.dataclass(frozen=True, eq=False)
class PlannedBatch:
    """One global batch.

    Attributes:
        samples: numbers of samples, FILLER in rows without one.
        length: S.
        images: M.
    """

    samples: Int[np.ndarray, " B"]
    length: int
    images: int


class Padding(NamedTuple):
    """Shares of a run's token slots that hold no token.

    Attributes:
        planned: of this plan, rows without a sample included.
        unsorted: of random batches, each padded to its own longest sample (the official collator).
        one_shape: of random batches, all padded to the longest sample of the run.
    """

    planned: float
    unsorted: float
    one_shape: float


@dataclasses.dataclass(frozen=True, eq=False)
class RunPlan:
    """All batches of a run; `plan[step]` is one of them. Made by `make_plan`.

    Attributes:
        samples: see `PlannedBatch`, of all steps.
        shape_of: which of `shapes` each step has.
        shapes: what the run compiles.
        epoch_of: which epoch each step belongs to.
        padding: what sorting saves.
    """

    samples: Int[np.ndarray, "T B"]
    shape_of: Int[np.ndarray, " T"]
    shapes: tuple[Shape, ...]
    epoch_of: Int[np.ndarray, " T"]
    padding: Padding

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, step: int) -> PlannedBatch:
        """The batch of a step from 0 on.

        Raises:
            IndexError: no such step.
        """
        if not 0 <= step < len(self):
            raise IndexError(f"step {step} of a plan with {len(self)} steps")
        shape = self.shapes[self.shape_of[step]]
        return PlannedBatch(self.samples[step], shape.length, shape.images)

    @property
    def fingerprint(self) -> str:
        """Equal for equal plans: hosts, and a run and its continuation, compare it."""
        digest = hashlib.sha256(repr((self.samples.shape, self.shapes)).encode())
        digest.update(self.samples.astype("<i8").tobytes())
        digest.update(self.shape_of.astype("<i8").tobytes())
        return digest.hexdigest()


def make_plan(
    lengths: Int[np.ndarray, " n"],
    image_counts: Int[np.ndarray, " n"],
    config: DataConfig,
    *,
    global_batch: int,
    epochs: float | int | None = None,
    steps: int | None = None,
    sources: Int[np.ndarray, " n"] | None = None,
) -> RunPlan:
    """Permutes each epoch, sorts within windows, cuts into batches, shuffles the batches, chooses the shapes.

    Batches hold samples with about as many images and tokens as each other; their rows are in random order, so that
    devices see alike ones. Only the raw stream of a bit generator is used, which numpy promises never to change.

    Args:
        lengths: tokens of each sample, image slots included, 1 or more.
        image_counts: images of each sample.
        config: `lengths`, `max_shapes`, `window`, `weights` and `seed` are read.
        global_batch: B.
        epochs: passes over the data; of a last part of an epoch, as many of its batches.
        steps: T, in place of `epochs`.
        sources: which source each sample is from; needed for `config.weights`.

    Raises:
        InputError: no samples, or one that is longer than the given lengths or has too many images.
    """
    if (epochs is None) == (steps is None):
        raise ValueError("make_plan takes either epochs or steps")
    if config.weights and sources is None:
        raise ValueError("make_plan needs the samples' sources to weigh them")
    if not lengths.size:
        raise InputError("There is no sample to train on: data.source is empty or everything in it was left out.")
    slots = _slots(image_counts)
    batches, epoch_of, unsorted = [], [], 0
    passes, left = math.inf if epochs is None else epochs, math.inf if steps is None else steps
    for epoch in range(math.ceil(min(passes, sys.maxsize))):
        order = _draw(config, lengths.size, sources, epoch)
        whole = _batches(order, slots * _LONGEST + lengths, config, global_batch, epoch)
        count = int(min(math.ceil(min(1.0, passes - epoch) * len(whole) - 1e-9), left))
        batches.append(whole[:count])
        epoch_of += [epoch] * count
        unsorted += int(_most(_cut(order, global_batch)[:count], lengths).sum())
        left -= count
        if not left:
            break
    samples = np.concatenate(batches)
    if not samples.size:
        raise InputError(f"data.weights {config.weights} over {epochs} epochs draw no sample; raise one of them.")
    longest, images = _most(samples, lengths), _most(samples, slots)
    shapes = choose_shapes(longest, images, candidate_lengths(config.lengths, int(longest.max())), config.max_shapes)
    shape_of = assign_shapes(longest, images, shapes)
    padded = int(np.asarray([shape.length for shape in shapes])[shape_of].sum())
    one_shape = max(shape.length for shape in shapes) * len(samples)
    tokens = int(lengths[samples[samples >= 0]].sum(dtype=np.int64))
    padding = Padding(*(1.0 - tokens / (global_batch * size) for size in (padded, unsorted, one_shape)))
    return RunPlan(samples, shape_of, shapes, np.asarray(epoch_of, np.int64), padding)


def _draw(config: DataConfig, count: int, sources: Int[np.ndarray, " n"] | None, epoch: int) -> Int[np.ndarray, " e"]:
    """The samples of an epoch in random order.

    A source is read pass by pass, each in an order of its own; an epoch takes up where the one before it stopped.
    """
    if sources is None or not config.weights:
        return _permutation(count, config.seed, epoch)
    drawn = [np.zeros(0, np.int64)]
    for source, weight in enumerate(config.weights):
        own = np.flatnonzero(sources == source)
        start, stop = round(weight * own.size * epoch), round(weight * own.size * (epoch + 1))
        for number in range(start // max(own.size, 1), -(-stop // max(own.size, 1))):
            first = number * own.size
            one_pass = own[_permutation(own.size, config.seed, number, source)]
            drawn.append(one_pass[max(start - first, 0) : stop - first])
    joined = np.concatenate(drawn)
    return joined[_permutation(joined.size, config.seed, epoch)]


def _batches(
    order: Int[np.ndarray, " e"], size: Int[np.ndarray, " n"], config: DataConfig, rows: int, epoch: int
) -> Int[np.ndarray, "T B"]:
    """An epoch's batches: of samples of nearly equal `size` within each window, and themselves in random order."""
    window = np.arange(order.size) // (config.window * rows)
    batches = _cut(order[np.lexsort((size[order], window))], rows)
    batches = batches[_permutation(len(batches), config.seed, epoch, 0, 1)]
    within = np.argsort(_stream(batches.size, config.seed, epoch, 0, 2).reshape(batches.shape), axis=1, kind="stable")
    return np.take_along_axis(batches, within, axis=1)


def _cut(order: Int[np.ndarray, " e"], rows: int) -> Int[np.ndarray, "T B"]:
    filler = np.full(-order.size % rows, FILLER, np.int64)
    return np.concatenate([order, filler]).reshape(-1, rows)


def _most(samples: Int[np.ndarray, "T B"], of: Int[np.ndarray, " n"]) -> Int[np.ndarray, " T"]:
    """The largest value in each batch."""
    return np.where(samples >= 0, of[samples], 0).max(axis=1, initial=0)


def _slots(image_counts: Int[np.ndarray, " n"]) -> Int[np.ndarray, " n"]:
    """M that each sample needs."""
    slots_for(int(image_counts.max()))
    return np.asarray(IMAGE_SLOTS, np.int64)[np.searchsorted(IMAGE_SLOTS, image_counts)]


def _permutation(count: int, *key: int) -> Int[np.ndarray, " _"]:
    return np.argsort(_stream(count, *key), kind="stable")


def _stream(count: int, *key: int) -> np.ndarray:
    return np.random.PCG64(np.random.SeedSequence(key)).random_raw(count)
