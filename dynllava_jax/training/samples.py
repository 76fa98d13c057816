"""The samples of a run: those that train, in their plan, and those that are held out."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dynllava_jax.config.data import DataConfig
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.data.dataset import Dataset, open_dataset
from dynllava_jax.data.plan import FILLER, RunPlan, make_plan
from dynllava_jax.data.records import SampleError
from dynllava_jax.training.setup import Subject


class Samples(NamedTuple):
    """A data set and the batches that it forms."""

    dataset: Dataset
    plan: RunPlan

    @property
    def fingerprint(self) -> str:
        """Changes when any step would see other samples."""
        return f"{self.dataset.fingerprint} {self.plan.fingerprint}"

    def rows(self, step: int) -> int:
        """Samples of a step's batch, whether they can be read or not."""
        return int((self.plan[step].samples != FILLER).sum())

    def ids(self, step: int) -> tuple[str, ...]:
        """Of all samples in a step's batch, on whatever process."""
        return tuple(self._id(int(number)) for number in self.plan[step].samples if number != FILLER)

    def _id(self, number: int) -> str:
        source = self.dataset.sources[self.dataset.source_of[number]]
        try:
            return source.record(int(self.dataset.index_of[number])).id
        except SampleError as error:
            return error.id


def training_samples(config: TrainConfig, subject: Subject) -> tuple[Samples, Samples | None]:
    """Opens the data, holds out what evaluation needs, and plans both.

    Raises:
        InputError: a source cannot be opened, nothing is left, bad samples (see `data.dataset`).
    """
    others = (config.eval.source,) if config.eval.every and config.eval.source is not None else ()
    dataset = _open(config.data, subject, others)
    held_out = None
    if config.eval.every:
        if config.eval.source is None:
            dataset, held_out = dataset.hold_out(config.eval.samples)
        else:
            given = dataclasses.replace(
                config.data, source=config.eval.source, images=config.eval.images, weights=(), lengths=()
            )
            held_out = _open(given, subject, config.data.sources)
            if len(held_out) > config.eval.samples:
                _, held_out = held_out.hold_out(config.eval.samples)
    plan = make_plan(
        dataset.lengths,
        dataset.image_counts,
        config.data,
        global_batch=config.global_batch_size,
        epochs=config.epochs if config.steps is None else None,
        steps=config.steps,
        sources=dataset.source_of,
    )
    return Samples(dataset, plan), None if held_out is None else _once(held_out, config, plan)


def _open(data: DataConfig, subject: Subject, beside: Sequence[str]) -> Dataset:
    model = subject.model
    return open_dataset(data, subject.tokenizer, subject.template, model.image_tokens, model.image_prep, beside)


def _once(dataset: Dataset, config: TrainConfig, training: RunPlan) -> Samples:
    """Every held-out sample once, in the lengths of training if they fit, so that fewer programs are compiled."""
    lengths = tuple(sorted({shape.length for shape in training.shapes}))
    if lengths[-1] < np.max(dataset.lengths):
        lengths = ()
    data = dataclasses.replace(config.data, weights=(), lengths=lengths)
    plan = make_plan(dataset.lengths, dataset.image_counts, data, global_batch=config.global_batch_size, epochs=1.0)
    return Samples(dataset, plan)
