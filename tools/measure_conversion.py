"""Memory and speed of conversion at a preset's true size: makes random weights and prints a table.

    python tools/measure_conversion.py --preset llava_1_5_7b --folder SCRATCH [--layouts official hf] [--layers N]

One direction at a time, files deleted in between, so the disk needs about two and a half times the model. Each
direction is compared with a plain copy of the same bytes just before it: read and written in turn, caches dropped,
flushed at the end. Memory is the highest `RssAnon` of /proc/PID/status, which is cheap to ask for (`smaps_rollup` walks
all pages, and the command waits meanwhile), above that of an idle interpreter; pages of mapped files do not count.
"""

import argparse
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

CHUNK = 64 << 20


@dataclasses.dataclass(frozen=True)
class Run:
    """One direction: seconds, and those of a processor, of the command and of the plain copy; bytes; peak memory."""

    name: str
    nbytes: int
    seconds: float
    cpu: float
    copy_seconds: float
    copy_cpu: float
    peak: int

    def line(self) -> str:
        share = self.copy_seconds / self.seconds
        return (
            f"| {self.name} | {self.nbytes / 1e9:.2f} | {self.seconds:.1f} ({self.cpu:.0f}) | "
            f"{self.copy_seconds:.1f} ({self.copy_cpu:.0f}) | {share:.0%} | {self.peak / 1e9:.2f} |"
        )


def anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")), 0)


def watched(argv: list[str]) -> tuple[float, float, int]:
    """Seconds until the command's bytes are on the disk, those of a processor, and its peak anonymous memory."""
    before, started, peak = os.times(), time.monotonic(), 0
    with subprocess.Popen(argv, env={**os.environ, "JAX_PLATFORMS": "cpu"}) as process:
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.02)
    if process.returncode:
        raise SystemExit(process.returncode)
    os.sync()
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.monotonic() - started, cpu, peak


def files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file()]


def drop_caches(folder: Path) -> None:
    os.sync()
    for path in files(folder):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def copy(folder: Path, target: Path) -> tuple[float, float]:
    """Seconds that a plain copy of all bytes takes, and those of a processor; the copy is deleted."""
    drop_caches(folder)
    started, cpu = time.monotonic(), time.process_time()
    with target.open("wb", buffering=0) as out:
        for path in files(folder):
            with path.open("rb", buffering=0) as file:
                while data := file.read(CHUNK):
                    out.write(data)
        os.fsync(out.fileno())
    spent = time.monotonic() - started, time.process_time() - cpu
    target.unlink()
    return spent


def direction(name: str, src: Path, dst: Path, options: list[str]) -> Run:
    copy_seconds, copy_cpu = copy(src, dst.with_name("copy.bin"))
    drop_caches(src)
    seconds, cpu, peak = watched([sys.executable, "-m", "dynllava_jax.cli.main", "convert", *options])
    nbytes = sum(path.stat().st_size for path in files(src))
    idle = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    time.sleep(0.5)
    above = peak - anonymous(idle.pid)
    idle.communicate(b"\n")
    run = Run(name, nbytes, seconds, cpu, copy_seconds, copy_cpu, above)
    print(run.line(), flush=True)
    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="llava_1_5_7b")
    parser.add_argument("--layers", type=int, help="only so many decoder layers")
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--layouts", nargs="+", default=["official", "hf"])
    parser.add_argument("--folder", type=Path, required=True, help="scratch folder on the disk to measure")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    scratch = args.folder / "measure-conversion"
    scratch.mkdir(parents=True)
    torch, model, back = (scratch / name for name in ("torch", "model", "back"))
    try:
        make = [sys.executable, "-m", "dynllava_jax.cli.main", "convert", "make-random", str(torch)]
        make += ["--preset", args.preset, "--dtype", args.dtype]
        subprocess.run([*make, *(["--layers", str(args.layers)] if args.layers else [])], check=True)
        print("| direction | GB | s (of a processor) | plain copy, s | of its speed | peak anonymous GB |")
        print("|---|---|---|---|---|---|", flush=True)
        runs = [direction("official → JAX", torch, model, ["from-torch", str(torch), str(model), "--no-predictors"])]
        shutil.rmtree(torch)
        for layout in args.layouts:
            name = f"JAX → {layout}"
            runs.append(direction(name, model, back, ["to-torch", str(model), str(back), "--layout", layout]))
            shutil.rmtree(back)
        if args.json is not None:
            args.json.write_text(json.dumps([dataclasses.asdict(run) for run in runs], indent=1) + "\n")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
