"""Batches come in the plan's order from any step on, with a row for every sample, read or not."""

import gc
import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from grain.multiprocessing import SharedMemoryArray

from dynllava_jax.config.data import DataConfig
from dynllava_jax.data.dataset import Dataset
from dynllava_jax.data.loader import HostBatch, Loader
from dynllava_jax.data.plan import FILLER, RunPlan, make_plan
from dynllava_jax.errors import CheckError, InputError
from tests.data.memory_source import MemorySource, make_dataset

_BROKEN = ("memory-3", "memory-17")


def _run(folder: Path, broken: tuple[str, ...] = (), **options: Any) -> tuple[Dataset, RunPlan, DataConfig]:
    """22 samples of 0 to 2 images and 1 to 40 words, in 6 batches of 4."""
    source = MemorySource(tuple(n % 3 for n in range(22)), tuple(1 + n * 7 % 40 for n in range(22)), broken=broken)
    config = DataConfig(**{"source": "memory", "require_image": False, "workers": 0, **options})
    dataset = make_dataset(folder, source, config=config)
    return dataset, make_plan(dataset.lengths, dataset.image_counts, config, global_batch=4, epochs=1), config


def _assert_equal(one: HostBatch, other: HostBatch) -> None:
    assert (one.step, one.ids) == (other.step, other.ids)
    jax.tree.map(np.testing.assert_array_equal, one.batch, other.batch)


def test_every_row_is_the_planned_sample(tmp_path: Path) -> None:
    dataset, plan, config = _run(tmp_path)
    with Loader(dataset, plan, config) as loader:
        for step, (index, batch, ids, failures) in enumerate(loader):
            assert (index, failures) == (step, ())
            for row, number in enumerate(plan[step].samples):
                if number == FILLER:
                    assert (ids[row], batch.lengths[row], batch.image_count[row]) == ("", 0, 0)
                    continue
                id, sample, pixels = dataset.load(int(number))
                assert (ids[row], batch.lengths[row]) == (id, sample.length)
                np.testing.assert_array_equal(batch.tokens[row, : sample.length], sample.tokens)
                assert batch.labels is not None
                np.testing.assert_array_equal(batch.labels[row, : sample.length], sample.labels)
                for slot, image in enumerate(pixels):
                    assert batch.images is not None
                    np.testing.assert_array_equal(batch.images[row, slot], image)
            assert batch.tokens.shape == (4, plan[step].length)
    assert step == len(plan) - 1


def test_any_step_may_be_the_first_and_any_rows_a_host_s(tmp_path: Path) -> None:
    dataset, plan, config = _run(tmp_path)
    whole = list(Loader(dataset, plan, config))
    rows = np.array([1, 3])
    for start in (0, 2, len(plan)):
        part = list(Loader(dataset, plan, config, rows=rows, start_step=start))
        assert [batch.step for batch in part] == list(range(start, len(plan)))
        for own, everything in zip(part, whole[start:], strict=True):
            assert own.ids == tuple(everything.ids[row] for row in rows)
            jax.tree.map(lambda one, all: np.testing.assert_array_equal(one, all[rows]), own.batch, everything.batch)


def test_a_host_with_fillers_alone_has_the_same_shapes(tmp_path: Path) -> None:
    dataset, plan, config = _run(tmp_path)
    step, row = np.argwhere(plan.samples == FILLER)[0]
    (batch,) = [each.batch for each in Loader(dataset, plan, config, rows=np.array([row])) if each.step == step]
    shape = plan[int(step)]
    assert batch.labels is not None
    assert batch.images is not None
    assert batch.tokens.shape == batch.labels.shape == (1, shape.length)
    assert batch.images.shape == (1, shape.images, 8, 8, 3)
    assert batch.lengths.tolist() == [0]


def test_a_broken_sample_is_an_empty_row_and_named(tmp_path: Path) -> None:
    dataset, plan, config = _run(tmp_path, _BROKEN, on_error="skip", max_skipped=0.1)
    batches = list(Loader(dataset, plan, config))
    failures = [failure for batch in batches for failure in batch.failures]
    assert sorted((failure.id, failure.reason) for failure in failures) == [("memory-17", "missing image")]
    for batch in batches:
        for row, id in enumerate(batch.ids):
            assert (batch.batch.lengths[row] == 0) == (id in ("", "memory-17"))


def test_broken_samples_stop_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Sample 'memory-17': missing image .*data.on_error='skip'"):
        list(Loader(*_run(tmp_path, _BROKEN)))
    with pytest.raises(InputError, match=r"1 of \d+ samples could not be read, more than data.max_skipped 0.04; "):
        list(Loader(*_run(tmp_path, _BROKEN, on_error="skip", max_skipped=0.04)))


def test_where_a_run_goes_on_and_on_how_many_hosts_does_not_make_a_sample_too_many(tmp_path: Path) -> None:
    """Of the few rows that were left, or were this host's, one sample was more than the share, and ended every try."""
    dataset, plan, config = _run(tmp_path, _BROKEN, on_error="skip", max_skipped=0.1)
    (step,) = (batch.step for batch in Loader(dataset, plan, config) if batch.failures)
    (row,) = (row for row in range(plan.samples.shape[1]) if _failures(dataset, plan, config, np.array([row]), 0))
    for rows, start in ((None, step), (np.array([row]), 0), (np.array([row]), step)):
        assert _failures(dataset, plan, config, rows, start) == ["memory-17"]


def _failures(dataset: Dataset, plan: RunPlan, config: DataConfig, rows: np.ndarray | None, start: int) -> list[str]:
    loader = Loader(dataset, plan, config, rows=rows, start_step=start)
    return [failure.id for batch in loader for failure in batch.failures]


@pytest.mark.slow
def test_a_closed_loader_leaves_no_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is left of it when Python ends is complained of on stderr.

    And what Grain's thread closes while the collector does is closed twice, or something else in its place.
    """
    dataset, plan, config = _run(tmp_path, workers=2)
    by_thread = []
    with Loader(dataset, plan, config) as loader:
        assert len(list(loader)) == len(plan)
        monkeypatch.setattr(SharedMemoryArray, "close_shm_async", lambda shm, unlink: by_thread.append(shm.name))
    assert by_thread == []
    assert not [held for held in gc.get_objects() if issubclass(type(held), SharedMemoryArray)]


def test_workers_give_the_same_and_their_death_is_an_error(tmp_path: Path) -> None:
    dataset, _, config = _run(tmp_path, workers=2)
    # More steps than could wait in any buffer.
    plan = make_plan(dataset.lengths, dataset.image_counts, config, global_batch=4, steps=60)
    with (
        Loader(dataset, plan, _run(tmp_path)[2], start_step=1) as here,
        Loader(dataset, plan, config, start_step=1) as loader,
    ):
        for _ in range(3):
            _assert_equal(next(loader), next(here))
        for worker in multiprocessing.active_children():
            assert worker.pid is not None
            os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(CheckError, match=r"ended with exit code -9 before step \d+; .*lower data.workers"):
            list(loader)
    assert not multiprocessing.active_children()
