"""A run that is killed again and again ends with the bits of one that was left in peace.

The soak: `pytest -m soak tests/training/test_killed.py` kills it twenty times.
"""

import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest

from tests.training.killed import train_step
from tests.training.states import assert_same, make, open_run

ROOT = Path(__file__).parent.parent.parent


def start(workdir: Path, last: int) -> tuple[subprocess.Popen[str], IO[str], int]:
    """A run that has begun to save, and the step from which it went on."""
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.training.killed", str(workdir), str(last)]
    process = subprocess.Popen(command, env=environment, cwd=ROOT, text=True, stdout=subprocess.PIPE)
    assert process.stdout is not None
    return process, process.stdout, int(process.stdout.readline().removeprefix("ready at "))


@pytest.mark.parametrize("kills", [pytest.param(2, marks=pytest.mark.slow), pytest.param(20, marks=pytest.mark.soak)])
def test_killed_at_random_moments(tmp_path: Path, kills: int) -> None:
    moments, before = random.Random(kills), 0
    for kill in range(kills):
        process, output, began = start(tmp_path, 10**6)
        with output:
            time.sleep(moments.uniform(0, 2))
            process.kill()
            process.wait()
        print(f"kill {kill}: went on from step {began}; left {sorted(os.listdir(tmp_path / 'checkpoints'))}")
        assert began >= before, "a whole checkpoint was lost"
        before = began
    with open_run(tmp_path) as checkpoints:
        reached = max(checkpoints.steps(), default=0)
    process, output, began = start(tmp_path, reached + 3)
    with output:
        assert process.wait() == 0
    assert began == reached

    state = make(0)
    for _ in range(reached + 3):
        state = train_step(state)
    with open_run(tmp_path) as checkpoints:
        assert checkpoints.steps() == (reached + 2, reached + 3)
        found = checkpoints.restore(None, *make(0))
        assert_same((found.params, found.rest), state)
        for step in checkpoints.steps():
            checkpoints.restore(step, *make(0))
