"""Kills `dynllava train` at random moments, also while it saves, and compares the end with an undisturbed run.

    JAX_PLATFORMS=cpu python tools/soak_kills.py --kills 20

Prints a line for every kill. Exit status 1 when a run does not go on from a whole checkpoint, or when parameters,
moments or metrics of the last step differ in a bit from those of the run that nobody killed.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from dynllava_jax.testing import write_tokenizer
from tests.training.runs import command, records, saved, write_data

ROOT = Path(__file__).parent.parent
_TIMES = ("seconds", "tokens_per_second", "mfu")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        return 0 if soak(Path(folder), args.kills, args.steps, args.seed) else 1


def soak(folder: Path, kills: int, steps: int, seed: int = 0) -> bool:
    """Whether `kills` kills, spread over a run of so many steps, left no trace in its result."""
    data = write_data(folder / "data")
    (folder / "tokenizer").mkdir()
    write_tokenizer(folder / "tokenizer")
    undisturbed, killed = folder / "undisturbed", folder / "killed"
    started = time.monotonic()
    assert _start(data, undisturbed, folder, steps).wait() == 0
    duration, moments = time.monotonic() - started, random.Random(seed)
    print(f"undisturbed: {steps} steps in {duration:.0f} s", flush=True)
    done = -1
    for kill in range(1, kills + 1):
        process = _start(data, killed, folder, steps)
        found = _kill_between_steps(process, killed, done, moments)
        if found is None:
            print(f"kill {kill}: the run was over before; give it more steps", flush=True)
            break
        left = sorted(path.name for path in (killed / "checkpoints").glob("*"))
        print(f"kill {kill}: at step {found}; left {left}", flush=True)
        whole = saved(killed)
        if whole and whole[-1] < done:
            print(f"a whole checkpoint was lost: {done}", flush=True)
            return False
        done = whole[-1] if whole else -1
    if _start(data, killed, folder, steps).wait() != 0:
        print("the run could not be finished", flush=True)
        return False
    same = _result(undisturbed) == _result(killed)
    print("bit-identical" if same else "the results differ", flush=True)
    return same


def _start(data: Path, workdir: Path, folder: Path, steps: int) -> subprocess.Popen[bytes]:
    more = (f"--config.steps={steps}", "--config.checkpoint.every=2", f"--config.init.tokenizer={folder / 'tokenizer'}")
    argv = command(data, workdir, *more, "--config.log.health_every=0")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "jax"))
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        [sys.executable, "-m", "dynllava_jax.cli.main", *argv], env=environment, cwd=ROOT, stdout=quiet, stderr=quiet
    )


def _kill_between_steps(
    process: subprocess.Popen[bytes], workdir: Path, done: int, moments: random.Random
) -> int | None:
    """Waits until the run has gone on for a few steps, then kills it; the last step that it wrote down."""
    wanted, moment = done + moments.randint(1, 6), moments.uniform(0.0, 0.2)
    while process.poll() is None:
        step = _last_step(workdir)
        if step >= max(wanted, 1):
            time.sleep(moment)
            process.kill()
            process.wait()
            return _last_step(workdir)
        time.sleep(0.01)
    return None


def _last_step(workdir: Path) -> int:
    file = workdir / "metrics.jsonl"
    lines = file.read_text().splitlines() if file.exists() else []
    for line in reversed(lines):
        try:
            return json.loads(line)["step"]
        except ValueError:  # half a line
            continue
    return -1


def _result(workdir: Path) -> tuple[Any, Any]:
    """Every step's metrics, and the checksum of every array of the last checkpoint."""
    rows = [
        {key: value for key, value in row.items() if key not in _TIMES and not key.startswith("time/")}
        for row in records(workdir)
    ]
    last = workdir / "checkpoints" / str(saved(workdir)[-1])
    return rows, json.loads((last / "hashes.json").read_text())["content"]["items"]


if __name__ == "__main__":
    sys.exit(main())
