"""Two real processes: they read what one wrote, name the same damage, write together, stop together."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dynllava_jax.sharding.mesh import make_mesh
from tests.training.states import assert_same, kernel, make, open_run, save

ROOT = Path(__file__).parent.parent.parent


def run_two(*args: str | Path) -> list[list[str]]:
    """What each process says."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "4", "PYTHONPATH": str(ROOT)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.two_processes", str(number), address, *map(str, args)],
            env=environment,
            cwd=ROOT,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(2)
    ]
    try:
        results = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(err[-3000:] for _, err in results)
    return [[line[5:] for line in out.splitlines() if line.startswith("said ")] for out, _ in results]


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    save(tmp_path / "saved", 100, 200, mesh=make_mesh("data=2,fsdp=4"))
    shutil.copytree(tmp_path / "saved", tmp_path / "damaged")
    damaged = tmp_path / "damaged" / "checkpoints" / "200"
    row = np.asarray(kernel(make(200)[0]))[1, 30, :8].tobytes()
    (file,) = (path for path in damaged.rglob("*") if path.is_file() and row in path.read_bytes())
    content = bytearray(file.read_bytes())
    content[content.index(row)] ^= 1
    file.write_bytes(content)

    first, second = run_two(tmp_path / "saved", tmp_path / "damaged", tmp_path / "workdir")
    assert first == second
    assert first[0] == "same True"
    assert first[1].startswith(f"{damaged} is damaged: params/block/kernel differ from what was saved")
    assert first[2:] == ["steps 2 3", "stopped 7", "stopped 7"]  # told in step 5, two steps before

    with open_run(tmp_path / "workdir") as checkpoints:
        found = checkpoints.restore(3, *make(0))
        assert_same((found.params, found.rest), make(3))
