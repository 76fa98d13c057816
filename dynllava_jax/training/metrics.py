"""Where a run tells how it goes: `metrics.jsonl`, TensorBoard, Weights & Biases, and a bar or lines on the terminal.

Only process 0 writes. A record belongs to the number of optimizer steps done; each step has one.
"""

import contextlib
import importlib
import json
import math
import os
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import jax
from etils import epath

from dynllava_jax.checkpoint.paths import is_remote
from dynllava_jax.config.json_codec import to_json
from dynllava_jax.config.training import LogConfig, TrainConfig
from dynllava_jax.errors import InputError

FILE = "metrics.jsonl"

_REMOTE_SECONDS = 60.0
"""Objects on a bucket cannot grow: the file is written anew, not more often than this between two checkpoints."""
_LINE_SECONDS = 30.0
"""Between two lines of progress where there is no terminal."""


@runtime_checkable
class Writer(Protocol):
    """One place that records go to."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """`values` after `step` optimizer steps."""
        ...

    def flush(self) -> None:
        """Puts what was written where a kill cannot take it, if it can: a run that goes on writes what follows."""
        ...

    def close(self) -> None: ...


def check_packages(config: LogConfig) -> None:
    """Raises InputError for a writer whose package is not there: before any work, and on every process."""
    if config.wandb_project is not None:
        _import("wandb", "log.wandb_project")
    if config.tensorboard:
        _import("tensorboardX", "log.tensorboard")


@contextlib.contextmanager
def open_writers(workdir: str, config: TrainConfig, start: int, total: int) -> Iterator[Sequence[Writer]]:
    """The writers that `config.log` asks for; none in a process other than the first.

    Args:
        workdir: the run's folder, which may lie on a bucket.
        config: the run, which Weights & Biases shows.
        start: steps done before; what was recorded beyond them is dropped, because it comes again.
        total: steps of the whole run.
    """
    if jax.process_index() != 0:
        yield ()
        return
    with contextlib.ExitStack() as stack:
        writers: list[Writer] = []
        for make in _makers(epath.Path(workdir), config, start, total):
            writers.append(make())
            stack.callback(writers[-1].close)
        yield writers


def _makers(workdir: epath.Path, config: TrainConfig, start: int, total: int) -> Iterator[Any]:
    workdir.mkdir(parents=True, exist_ok=True)
    if config.log.wandb_project is not None:
        yield lambda: WandbWriter(workdir, config)
    if config.log.tensorboard:
        yield lambda: TensorBoardWriter(workdir, start)
    yield lambda: JsonLines(workdir / FILE, start)
    yield lambda: Progress(start, total)


class JsonLines:
    """`metrics.jsonl`: one object a step, in order; what is no finite number is null."""

    def __init__(self, path: epath.Path, start: int) -> None:
        """Keeps the records of the first `start` steps and drops later ones, and a line that was never finished."""
        self._path = path
        kept = list(_records(path.read_bytes().decode(errors="replace"), start)) if path.exists() else []
        self._lines = kept if is_remote(path) else None
        self._written = time.monotonic()
        partial = path.with_name(path.name + ".tmp")
        with self._writing():
            partial.write_text("".join(kept))
            partial.replace(path)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = json.dumps({"step": step, **finite}) + "\n"
        if self._lines is None:
            with self._writing(), self._path.open("a") as file:
                file.write(line)
            return
        self._lines.append(line)
        if time.monotonic() - self._written > _REMOTE_SECONDS:
            self._upload(self._lines)

    def flush(self) -> None:
        if self._lines is not None:
            self._upload(self._lines)

    def close(self) -> None:
        self.flush()

    def _upload(self, lines: Sequence[str]) -> None:
        with self._writing():
            self._path.write_text("".join(lines))
        self._written = time.monotonic()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self._path} could not be written: {error.strerror or error}; see to it that there is room, then the "
                "same command goes on from the last checkpoint."
            ) from None


def _records(text: str, last: int) -> Iterator[str]:
    for line in text.splitlines(keepends=True):
        try:
            step = json.loads(line)["step"]
        except (ValueError, KeyError, TypeError, RecursionError):
            continue
        if line.endswith("\n") and isinstance(step, int) and step <= last:
            yield line


class TensorBoardWriter:
    """Event files in `WORKDIR/tensorboard`."""

    def __init__(self, workdir: epath.Path, start: int) -> None:
        made = _import("tensorboardX", "log.tensorboard").SummaryWriter
        self._writer = made(os.fspath(workdir / "tensorboard"), purge_step=start + 1 if start else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        """Its thread writes every two minutes, whatever it is told; what a kill takes stands in `metrics.jsonl`."""

    def close(self) -> None:
        self._writer.close()


class WandbWriter:
    """A run of Weights & Biases, which goes on when the work folder does."""

    def __init__(self, workdir: epath.Path, config: TrainConfig) -> None:
        wandb = _import("wandb", "log.wandb_project")
        memory = workdir / "wandb_id.txt"
        if not memory.exists():
            memory.write_text(uuid.uuid4().hex)
        self._run = wandb.init(
            project=config.log.wandb_project,
            id=memory.read_text(),
            resume="allow",
            name=workdir.name,
            config=to_json(config),
        )

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def flush(self) -> None:
        """Its own process sends on what it was told, whatever becomes of this one."""

    def close(self) -> None:
        self._run.finish()


def _import(package: str, key: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError:
        raise InputError(f"{key} needs {package}; run: pip install {package}, or unset the key.") from None


class Progress:
    """A bar with rate and remaining time on a terminal, else a line now and then, on stderr."""

    def __init__(self, start: int, total: int) -> None:
        from tqdm import tqdm

        self._start, self._total, self._counted = start, total, start
        self._began = self._said = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = tqdm(initial=start, total=total, desc="training", unit="step", dynamic_ncols=True)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(summary(values), refresh=False)
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if step in (self._start + 1, self._total) or now - self._said >= _LINE_SECONDS:
            self._said = now
            left = (self._total - step) * (now - self._began) / max(1, step - self._counted)
            print(f"step {step}/{self._total}  {summary(values)}  ETA {spell_time(left)}", file=sys.stderr, flush=True)
        if self._counted == self._start:
            self._began, self._counted = now, step  # the first step compiled, which those to come do not

    def flush(self) -> None:
        """Nothing is kept back."""

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def summary(values: Mapping[str, float]) -> str:
    """The numbers that one watches, on one line."""
    forms = (
        ("loss", "loss {:.4g}"),
        ("image_keep_rate", "image {:.2f}"),
        ("output_keep_rate", "answer {:.2f}"),
        ("instruct_keep_rate", "instruction {:.2f}"),
        ("tokens_per_second", "{:.4g} tokens/s"),
        ("mfu", "MFU {:.1%}"),
    )
    return "  ".join(form.format(values[name]) for name, form in forms if name in values)


def spell_time(seconds: float) -> str:
    """Hours, minutes, seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
