"""Batches arrive on the mesh as the plan says, and the feed ends when it is told to."""

import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dynllava_jax.config.data import DataConfig
from dynllava_jax.data.dataset import Dataset
from dynllava_jax.data.loader import Loader
from dynllava_jax.data.plan import RunPlan, make_plan
from dynllava_jax.errors import InputError
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.training.feed import BATCH_AXES, Feed, process_rows
from tests.data.memory_source import MemorySource, make_dataset


def _run(folder: Path, images: tuple[int, ...] = (0, 1, 2), **options: Any) -> tuple[Dataset, RunPlan, DataConfig]:
    source = MemorySource((images * 24)[:24], (3,) * 24, broken=("memory-5",))
    config = DataConfig(**{"source": "memory", "require_image": False, "workers": 0, **options})
    dataset = make_dataset(folder, source, config=config)
    return dataset, make_plan(dataset.lengths, dataset.image_counts, config, global_batch=8, epochs=1), config


def _feed_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "feed"]


@pytest.mark.parametrize("spec", ["data=2,fsdp=2,tensor=2", "fsdp=8", "tensor=8"])
def test_global_arrays_are_the_planned_rows(tmp_path: Path, spec: str) -> None:
    dataset, plan, config = _run(tmp_path, on_error="skip", max_skipped=1.0)
    mesh = make_mesh(spec)
    host = list(Loader(dataset, plan, config))
    with Feed(dataset, plan, mesh, config, start_step=1) as feed:
        fed = list(feed)
    assert [batch.step for batch in fed] == [1, 2]
    for batch, expected in zip(fed, host[1:], strict=True):
        assert batch.ids == expected.ids
        assert list(map(str, batch.failures)) == list(map(str, expected.failures))
        jax.tree.map(np.testing.assert_array_equal, batch.batch, expected.batch)
        for name in BATCH_AXES:
            array = getattr(batch.batch, name)
            if array is not None:
                assert array.sharding.mesh == mesh
                assert array.sharding.shard_shape(array.shape)[0] == 8 // (mesh.shape["data"] * mesh.shape["fsdp"])
    assert not _feed_threads()


def test_no_images_no_array(tmp_path: Path) -> None:
    with Feed(*_run(tmp_path, (0,))[:2], make_mesh("data=2"), _run(tmp_path, (0,))[2]) as feed:
        assert next(feed).batch.images is None


def test_it_closes_before_its_end(tmp_path: Path) -> None:
    dataset, plan, config = _run(tmp_path, (1,), prefetch=1, on_error="skip", max_skipped=1.0)
    feed = Feed(dataset, plan, make_mesh("data=2"), config)
    assert next(feed).step == 0
    time.sleep(0.2)  # long enough for the thread to wait for room
    feed.close()
    feed.close()
    assert not _feed_threads()
    assert list(feed) == []


def test_an_error_comes_out_where_the_batch_is_asked_for(tmp_path: Path) -> None:
    dataset, plan, config = _run(tmp_path, (1,))
    with Feed(dataset, plan, make_mesh("data=2"), config) as feed, pytest.raises(InputError, match="Sample 'memory-5'"):
        list(feed)
    assert not _feed_threads()


def test_a_batch_that_does_not_divide_is_named() -> None:
    assert process_rows(8, make_mesh("data=2,fsdp=4")).tolist() == list(range(8))
    with pytest.raises(InputError, match=r"12 samples cannot be split over mesh data=2,fsdp=4; .* multiple of 8"):
        process_rows(12, make_mesh("data=2,fsdp=4"))
