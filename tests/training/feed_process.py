"""One of several processes that feed a run together; `test_two_processes` starts it.

Called with: process id, number of processes, coordinator address, folder. Writes what it got on each mesh as JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np

from dynllava_jax.config.data import DataConfig
from dynllava_jax.data.dataset import Dataset
from dynllava_jax.data.plan import RunPlan, make_plan
from dynllava_jax.errors import InputError
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.training.feed import Feed, check_same_plan, process_rows
from tests.data.memory_source import MemorySource, make_dataset

MESHES = ("data=2,fsdp=2", "tensor=4")
"""Of two processes with two devices each: each has half of the rows; both have all."""


def uneven_run(folder: Path) -> tuple[Dataset, RunPlan, DataConfig]:
    """37 samples, a few very long or with many images, in batches of 4."""
    images = tuple(4 if n % 11 == 0 else n % 2 for n in range(37))
    words = tuple(200 if n % 9 == 0 else 1 + n for n in range(37))
    config = DataConfig(source="memory", require_image=False, workers=0, max_shapes=4, window=2)
    dataset = make_dataset(folder, MemorySource(images, words), config=config)
    return dataset, make_plan(dataset.lengths, dataset.image_counts, config, global_batch=4, epochs=2), config


def main(process: int, processes: int, address: str, folder: Path) -> None:
    jax.distributed.initialize(address, processes, process, initialization_timeout=60)
    dataset, plan, config = uneven_run(folder)
    for spec in MESHES:
        (folder / f"{process}.{spec}.json").write_text(json.dumps(_fed(dataset, plan, config, spec)))
    other = make_plan(np.arange(1, 9), np.ones(8, np.int64), config, global_batch=4 * (1 + process), epochs=1)
    try:
        check_same_plan(other)
    except InputError as error:
        (folder / f"{process}.error").write_text(str(error))


def _fed(dataset: Dataset, plan: RunPlan, config: DataConfig, spec: str) -> list[dict[str, Any]]:
    mesh = make_mesh(spec)
    rows = process_rows(plan.samples.shape[1], mesh).tolist()
    total = jax.jit(lambda batch: (batch.lengths.sum(), (batch.kind > 0).sum()))
    told = []
    with Feed(dataset, plan, mesh, config) as feed:
        for step, batch, ids, _ in feed:
            shape = [batch.tokens.shape[1], 0 if batch.images is None else batch.images.shape[1]]
            totals = [int(sum.addressable_data(0)) for sum in total(batch)]
            told.append({"step": step, "rows": rows, "shape": shape, "ids": ids, "totals": totals})
    return told


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
