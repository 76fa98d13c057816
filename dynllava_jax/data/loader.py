"""Reads the batches of a plan in worker processes, in the plan's order, from any step on.

Axis legend: R rows of a global batch that this host holds.
"""

import gc
import re
import signal
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Int

from dynllava_jax.config.data import DataConfig
from dynllava_jax.data.batch import Batch, make_batch
from dynllava_jax.data.dataset import Dataset
from dynllava_jax.data.plan import FILLER, RunPlan
from dynllava_jax.data.records import SampleError
from dynllava_jax.data.spans import Sample
from dynllava_jax.data.workers import end_with_parent
from dynllava_jax.errors import CheckError, InputError

_FIRST_ROWS = 1000
"""Skipped samples are a share of at least so many, or of all rows of a shorter run on whatever host, so that one bad
sample does not end a run in its first batch, nor where few rows are left or fall to a host."""


class HostBatch(NamedTuple):
    """One step's rows of this host.

    Attributes:
        step: from 0 on.
        batch: R rows, in host memory; length 0 in rows without a sample or with one that could not be read.
        ids: of the sample in each row, read or not; "" in rows without one.
        failures: of the samples that could not be read.
    """

    step: int
    batch: Batch
    ids: tuple[str, ...]
    failures: tuple[SampleError, ...]


class Loader:
    """An iterator of `HostBatch`; close it, or use it in a `with`, so that its worker processes end."""

    def __init__(
        self,
        dataset: Dataset,
        plan: RunPlan,
        config: DataConfig,
        *,
        rows: Int[np.ndarray, " R"] | None = None,
        start_step: int = 0,
    ) -> None:
        """Starts reading at `start_step`.

        Args:
            dataset: what the plan's numbers mean.
            plan: of the whole run, the same on every host.
            config: `on_error`, `max_skipped` and `workers` are read.
            rows: which rows of every global batch this host reads; None: all.
            start_step: the first step to give; the plan's length gives nothing.
        """
        rows = np.arange(plan.samples.shape[1]) if rows is None else rows
        self._config = config
        self._real_rows = (plan.samples[:, rows] != FILLER).sum(axis=1)
        self._at_least = min(_FIRST_ROWS, int((plan.samples != FILLER).sum()))
        self._seen = self._skipped = 0
        self._step = start_step
        self._steps = len(plan)
        self._batches: Any = _batches(_Assemble(dataset, plan, rows), start_step, len(plan), config.workers)

    def __iter__(self) -> Iterator[HostBatch]:
        return self

    def __next__(self) -> HostBatch:
        """The next step's rows.

        Raises:
            InputError: a sample cannot be read (`on_error` "fail"), or more than `max_skipped` cannot.
            CheckError: a worker process was killed.
        """
        if self._step >= self._steps:
            raise StopIteration
        try:
            batch: HostBatch = next(self._batches)
        except RuntimeError as error:
            if (code := re.search(r"terminated unexpectedly with (exit code -?\d+)", str(error))) is None:
                raise
            raise CheckError(
                f"A process that reads samples ended with {code[1]} before step {self._step}; if memory or /dev/shm "
                "ran out, lower data.workers."
            ) from None
        if batch.step != self._step:
            raise RuntimeError(f"batch {batch.step} came in the place of {self._step}")
        self._step += 1
        self._account(batch)
        # Out of the shared memory that it came in, which is gone when the interpreter shuts down.
        return batch._replace(batch=jax.tree.map(np.array, batch.batch)) if self._config.workers else batch

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the worker processes; may be called twice."""
        batches, self._batches, self._steps = self._batches, None, self._step
        if hasattr(batches, "close"):
            batches.close()
            del batches
            _collect()

    def _account(self, batch: HostBatch) -> None:
        self._seen += int(self._real_rows[batch.step])
        self._skipped += len(batch.failures)
        if not batch.failures:
            return
        told = str(batch.failures[0]).rstrip(".")
        if self._config.on_error == "fail":
            raise InputError(f"{told}: 'dynllava data check' lists all such, data.on_error='skip' trains without them.")
        if self._skipped > self._config.max_skipped * max(self._seen, self._at_least):
            raise InputError(
                f"{self._skipped} of {self._seen} samples could not be read, more than data.max_skipped "
                f"{self._config.max_skipped:g}; the last: {told}."
            )


class _Assemble:
    """Step to HostBatch; goes into the worker processes."""

    def __init__(self, dataset: Dataset, plan: RunPlan, rows: Int[np.ndarray, " R"]) -> None:
        self._dataset, self._plan, self._rows = dataset, plan, rows
        size = dataset.preparation.image.crop
        self._image_shape = (size, size, 3)
        nothing = np.zeros(0, np.int32)
        self._nothing = Sample(nothing, nothing, nothing, (), dataset.preparation.image_tokens)

    def __call__(self, step: int) -> HostBatch:
        planned = self._plan[step]
        samples, pixels, ids, failures = [], [], [], []
        for number in planned.samples[self._rows]:
            sample, own, id = self._nothing, [], ""
            if number != FILLER:
                try:
                    id, sample, own = self._dataset.load(int(number))
                except SampleError as error:
                    failures.append(error)
                    id = error.id
            samples.append(sample)
            pixels.append(own)
            ids.append(id)
        batch = make_batch(
            samples,
            pixels,
            length=planned.length,
            slots=planned.images,
            rows=len(self._rows),
            image_shape=self._image_shape,
        )
        return HostBatch(int(step), batch, tuple(ids), tuple(failures))


def _batches(assemble: _Assemble, start: int, stop: int, workers: int) -> Iterator[HostBatch]:
    try:
        import grain
        from absl import flags
    except ImportError:
        raise InputError("Training reads its data with grain; pip install 'dynllava_jax[train]'.") from None
    if start >= stop:
        return iter(())
    # Whole batches are large: threads would read hundreds of them ahead.
    read = grain.ReadOptions(num_threads=0, prefetch_buffer_size=1)
    batches = grain.MapDataset.range(start, stop).map(assemble).to_iter_dataset(read)
    if workers:
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()  # Grain reads its own flags before it starts a process.
        options = grain.MultiprocessingOptions(num_workers=min(workers, stop - start))
        batches = batches.mp_prefetch(options, worker_init_fn=_start_worker)
    return iter(batches)


def _collect() -> None:
    """Frees what Grain's iterators hold in shared memory: they refer to themselves.

    Here and now, not by Grain's thread for that: the collector closes what it finds too, and the file descriptor that
    both close at a time may be another file's by then, such as a checkpoint's.
    """
    from grain.multiprocessing import SharedMemoryArray

    thread, SharedMemoryArray._del_thread_pool = SharedMemoryArray._del_thread_pool, None
    try:
        gc.collect()
    finally:
        SharedMemoryArray._del_thread_pool = thread


def _start_worker(worker: int, workers: int) -> None:
    """A worker takes no accelerator from the process that trains, and ends with it however that ends.

    Ctrl-C, which a terminal sends to all, is for that process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    jax.config.update("jax_platforms", "cpu")
    end_with_parent()
