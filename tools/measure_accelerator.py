"""Measures what docs/benchmarks.md lacks, on a machine with an accelerator: the most important first, in nine minutes.

    python tools/measure_accelerator.py FOLDER               # runs the commands, each within its own limit
    python tools/measure_accelerator.py FOLDER --list        # says what it would run
    python tools/measure_accelerator.py FOLDER --rehearse    # the same with a tiny model, on any machine

FOLDER/NAME.json holds the records of each command, one a line and each as soon as it was there: what is stopped at its
limit leaves those that it had. What the commands say stands in FOLDER/log.txt. Exit status 1: not all were finished.
"""

import argparse
import dataclasses
import os
import platform
import shlex
import signal
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUDGET = 540
"""Seconds for all of them together."""
_LEAST = 15
"""With fewer seconds left, none is begun: it would not come as far as its first record."""
_GRACE = 5


_WHOLE = {"XLA_PYTHON_CLIENT_ALLOCATOR": "cuda_async", "XLA_FLAGS": "--xla_gpu_memory_limit_slop_factor=160"}
"""A step of the 7B model fills an H200 so far that its memory may have no holes, and further than XLA allows itself."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One call of `dynllava`.

    Attributes:
        name: of its file.
        limit: seconds.
        words: the command.
        small: the same at a size that any machine runs in seconds.
    """

    name: str
    limit: int
    words: str
    small: str

    def command(self, folder: Path, rehearse: bool) -> list[str]:
        """Where it writes to included."""
        return ["dynllava", *shlex.split(self.small if rehearse else self.words), f"--json={folder / self.name}.json"]


_TINY = "bench generate --preset tiny --random-weights --dtype float32 --round 0.01"
_TINY_STEP = "bench train --preset tiny --length 48 --mesh data=1 --steps 2 --dtype float32 --round 0.01"
MEASUREMENTS = (
    Measurement(
        "attention",
        90,
        "bench attention --operation policy --operation causal --shape 4,32,32,2048,128",
        "bench attention --operation policy --operation causal --shape 1,4,2,64,16 --round 0.01",
    ),
    Measurement(
        "decode",
        30,
        "bench attention --operation decode --shape 32,32,32,2048,128",
        "bench attention --operation decode --shape 2,4,2,64,16 --round 0.01",
    ),
    Measurement(
        "answer",
        60,
        "bench generate --preset dynamic_llava_7b --random-weights --batch 1 --new-tokens 128",
        f"{_TINY} --batch 1 --new-tokens 8",
    ),
    Measurement(
        "prefill",
        70,
        "bench generate --preset dynamic_llava_7b --random-weights --batch 8 --new-tokens 32",
        f"{_TINY} --batch 8 --new-tokens 4",
    ),
    Measurement(
        "step",
        90,
        "bench train --preset dynamic_llava_7b --batch 4 --remat dots --mesh data=1",
        f"{_TINY_STEP} --batch 2 --remat dots",
    ),
    Measurement(
        "answer_fused",
        60,
        "bench generate --preset dynamic_llava_7b --random-weights --batch 1 --new-tokens 128 --products triton",
        f"{_TINY} --batch 1 --new-tokens 8 --products triton-interpret",
    ),
    Measurement(
        "step_full",
        110,
        "bench train --preset dynamic_llava_7b --batch 8 --mesh data=1",
        f"{_TINY_STEP} --batch 2",
    ),
    Measurement(
        "step_lora",
        90,
        "bench train --preset dynamic_llava_7b --batch 8 --mesh data=1 --lora 64",
        f"{_TINY_STEP} --batch 2 --lora 4",
    ),
    Measurement("table14", 150, "bench generate --paper table14 --random-weights", f"{_TINY} --new-tokens 16"),
)
"""Those that an aim hangs on stand first."""


def measure(one: Measurement, folder: Path, seconds: float, rehearse: bool) -> str:
    """Runs it for at most so many seconds; returns how it ended."""
    command = one.command(folder, rehearse)
    own = _WHOLE if "train" in one.words.split() else {}
    environment = own | os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        print(f"$ {shlex.join(command)}", file=log, flush=True)
        process = subprocess.Popen(
            [sys.executable, "-m", "dynllava_jax.cli.main", *command[1:]],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(seconds)
            ended = "done" if status == 0 else f"failed with status {status}"
        except subprocess.TimeoutExpired:
            ended = "stopped at its limit"
        finally:
            _end(process)
        print(f"# {ended}", file=log)
    return ended


def _end(process: subprocess.Popen[bytes]) -> None:
    """Nothing of it may live on: the next one needs the device's memory."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, signum)
            try:
                process.wait(_GRACE)
            except subprocess.TimeoutExpired:
                continue


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for the records, made where it lacks")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[one.name for one in MEASUREMENTS])
    parser.add_argument("--budget", type=float, default=BUDGET, help=f"seconds for all together ({BUDGET})")
    parser.add_argument("--list", action="store_true", help="only say what would be run")
    parser.add_argument("--rehearse", action="store_true", help="with a tiny model")
    args = parser.parse_args()
    asked = [one for one in MEASUREMENTS if args.only is None or one.name in args.only]
    folder = args.folder.resolve()
    if args.list:
        for one in asked:
            print(f"{one.limit:4d} s  {shlex.join(one.command(args.folder, args.rehearse))}")
        return 0
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        print(f"# jax {version('jax')}, Python {platform.python_version()}", file=log)
    began, unfinished = time.monotonic(), 0
    for one in asked:
        left = args.budget - (time.monotonic() - began) - _GRACE
        start = time.monotonic()
        ended = measure(one, folder, min(one.limit, left), args.rehearse) if left > _LEAST else "no time left"
        unfinished += ended != "done"
        file = folder / f"{one.name}.json"
        records = len(file.read_text().splitlines()) if file.exists() else 0
        print(f"{one.name:<10}{time.monotonic() - start:5.0f} s  {ended}, {records} records", flush=True)
    return 1 if unfinished else 0


if __name__ == "__main__":
    sys.exit(main())
