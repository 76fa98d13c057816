"""Two processes read one plan: the same shapes at the same steps, and together every row once."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dynllava_jax.data.plan import FILLER
from tests.training.feed_process import MESHES, uneven_run

_ROOT = Path(__file__).parents[2]


def _free_address() -> str:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{opened.getsockname()[1]}"


@pytest.mark.slow
def test_two_processes_read_one_plan(tmp_path: Path) -> None:
    address = _free_address()
    command = [sys.executable, "-W", "error", "-m", "tests.training.feed_process"]
    processes = [
        subprocess.Popen(
            [*command, str(process), "2", address, str(tmp_path)],
            cwd=_ROOT,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "2", "PYTHONPATH": str(_ROOT)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    for spec in MESHES:
        _check(tmp_path, spec)
    assert all("Process 1 plans other batches than process 0" in (tmp_path / f"{p}.error").read_text() for p in (0, 1))


def _check(folder: Path, spec: str) -> None:
    dataset, plan, _ = uneven_run(folder)
    told = [json.loads((folder / f"{process}.{spec}.json").read_text()) for process in range(2)]
    assert [line["step"] for line in told[0]] == [line["step"] for line in told[1]] == list(range(len(plan)))
    for step, (one, other) in enumerate(zip(*told, strict=True)):
        planned = plan[step]
        assert one["shape"] == other["shape"] == [planned.length, planned.images]
        assert sorted(one["rows"] + other["rows"]) == sorted([0, 1, 2, 3] * (2 if spec == "tensor=4" else 1))
        wanted = ["" if number == FILLER else f"memory-{dataset.index_of[number]}" for number in planned.samples]
        for line in (one, other):
            assert line["ids"] == [wanted[row] for row in line["rows"]]
        tokens = int(dataset.lengths[planned.samples[planned.samples != FILLER]].sum())
        assert one["totals"] == other["totals"] == [tokens, tokens]
