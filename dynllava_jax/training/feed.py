"""The batches of a plan as global device arrays, a few steps ahead of the one that trains.

Axis legend: B rows of a global batch, R rows of it that this process holds.
"""

import dataclasses
import math
import queue
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Int

from dynllava_jax.config.data import DataConfig
from dynllava_jax.data.batch import Batch
from dynllava_jax.data.dataset import Dataset
from dynllava_jax.data.loader import Loader
from dynllava_jax.data.plan import RunPlan
from dynllava_jax.data.records import SampleError
from dynllava_jax.errors import InputError
from dynllava_jax.sharding.rules import RULES, Rules
from dynllava_jax.sharding.specs import activation_sharding

BATCH_AXES: dict[str, tuple[str | None, ...]] = {
    "tokens": ("batch", "seq"),
    "kind": ("batch", "seq"),
    "positions": ("batch", "seq"),
    "lengths": ("batch",),
    "image_count": ("batch",),
    "images": ("batch", None, None, None, None),
    "labels": ("batch", "seq"),
}
"""Logical axes of the arrays of a `Batch`."""


class DeviceBatch(NamedTuple):
    """One step's input.

    Attributes:
        step: from 0 on.
        batch: global arrays, split by sample over the mesh.
        ids: of the samples in this process's rows, see `data.loader.HostBatch`.
        failures: of those that could not be read.
    """

    step: int
    batch: Batch
    ids: tuple[str, ...]
    failures: tuple[SampleError, ...]


class Feed:
    """An iterator of `DeviceBatch`, filled by a thread; close it, or use it in a `with`."""

    def __init__(
        self,
        dataset: Dataset,
        plan: RunPlan,
        mesh: Mesh,
        config: DataConfig,
        *,
        start_step: int = 0,
        rules: Rules = RULES,
    ) -> None:
        """Starts reading.

        Args:
            dataset, plan: see `data.loader.Loader`.
            mesh: of all processes.
            config: as for `Loader`; `prefetch` batches wait on the devices.
            start_step: the first step to give.
            rules: what the logical axes mean.

        Raises:
            InputError: the mesh does not divide B, or the processes have different plans.
        """
        rows = process_rows(plan.samples.shape[1], mesh, rules)
        check_same_plan(plan)
        self._mesh, self._rules, self._size = mesh, rules, plan.samples.shape[1]
        self._loader = Loader(dataset, plan, config, rows=rows, start_step=start_step)
        self._ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._room = threading.Semaphore(config.prefetch)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="feed", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[DeviceBatch]:
        return self

    def __next__(self) -> DeviceBatch:
        """The next step's batch.

        Raises:
            InputError, CheckError: what `Loader` raises.
        """
        if self._closing.is_set():
            raise StopIteration
        got = self._ready.get()
        if isinstance(got, DeviceBatch):
            self._room.release()
            return got
        self.close()
        raise got

    @property
    def ready(self) -> bool:
        """Whether the next batch, or the end, is there already."""
        return not self._ready.empty()

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the thread and the worker processes; may be called twice."""
        self._closing.set()
        self._room.release()
        self._thread.join()
        self._loader.close()

    def _fill(self) -> None:
        try:
            for host in self._loader:
                self._room.acquire()
                if self._closing.is_set():
                    return
                batch = to_devices(host.batch, self._size, self._mesh, self._rules)
                self._ready.put(DeviceBatch(host.step, batch, host.ids, host.failures))
            self._ready.put(StopIteration())
        except BaseException as error:  # raised again where the batch is asked for
            self._ready.put(error)


def process_rows(batch: int, mesh: Mesh, rules: Rules = RULES) -> Int[np.ndarray, " R"]:
    """The rows of a global batch that this process's devices hold, ascending.

    One block after the other where processes lie along the mesh's batch axes; all rows in each of two processes that
    share a tensor axis.

    Raises:
        InputError: the mesh does not divide B.
    """
    (over,) = rules.activation(("batch",))
    parts = math.prod(mesh.shape[axis] for axis in over)
    if batch % parts:
        spelled = ",".join(f"{axis}={mesh.shape[axis]}" for axis in over)
        raise InputError(
            f"A global batch of {batch} samples cannot be split over mesh {spelled}; make global_batch_size a multiple "
            f"of {parts}."
        )
    sharding = activation_sharding((batch,), ("batch",), mesh, rules)
    held = np.zeros(batch, bool)
    for part in sharding.addressable_devices_indices_map((batch,)).values():
        held[part] = True
    return np.flatnonzero(held)


def to_devices(batch: Batch, size: int, mesh: Mesh, rules: Rules = RULES) -> Batch:
    """Global arrays out of each process's rows.

    Args:
        batch: the rows that `process_rows` names.
        size: B.
        mesh: of all processes.
        rules: what the logical axes mean.
    """

    def put(rows: np.ndarray, axes: tuple[str | None, ...]) -> jax.Array:
        shape = (size, *rows.shape[1:])
        return jax.make_array_from_process_local_data(activation_sharding(shape, axes, mesh, rules), rows, shape)

    arrays = {name: rows for name in BATCH_AXES if (rows := getattr(batch, name)) is not None}
    return dataclasses.replace(batch, **{name: put(rows, BATCH_AXES[name]) for name, rows in arrays.items()})


def check_same_plan(plan: RunPlan) -> None:
    """Processes with different plans would wait for each other for ever.

    Raises:
        InputError: another process made another plan.
    """
    if jax.process_count() == 1:
        return
    own = np.frombuffer(bytes.fromhex(plan.fingerprint), np.uint8)
    plans = np.asarray(multihost_utils.process_allgather(own))
    if other := np.flatnonzero((plans != plans[0]).any(axis=1)).tolist():
        raise InputError(
            f"Process {other[0]} plans other batches than process 0: their data.source or their index of lengths "
            "differs; give all the same files."
        )
