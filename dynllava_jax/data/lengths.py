"""How long every sample of a source is, found once and kept in an index file.

N samples of the source.
"""

import contextlib
import dataclasses
import hashlib
import io
import json
import logging
import os
import re
import zipfile
import zlib

import numpy as np
from etils import epath
from jaxtyping import Int

from dynllava_jax.data.manifest import folder
from dynllava_jax.data.preparation import Preparation
from dynllava_jax.data.records import SampleError
from dynllava_jax.data.source import Source
from dynllava_jax.data.workers import in_order
from dynllava_jax.errors import InputError
from dynllava_jax.progress import Progress

_VERSION = 2
_WORTH_A_PROCESS = 5000
"""Samples that are measured in the seconds that a process takes to start."""

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class SampleLengths:
    """What the plan must know of each sample.

    Attributes:
        lengths: tokens, image slots included, after cutting; 0 for a sample that cannot be used.
        uncut: the same before cutting.
        image_counts: images.
        failures: samples that cannot be used, by their number, and why.
        key: of the source's content and of how it is prepared.
    """

    lengths: Int[np.ndarray, " N"]
    uncut: Int[np.ndarray, " N"]
    image_counts: Int[np.ndarray, " N"]
    failures: dict[int, SampleError]
    key: str


def sample_lengths(source: Source, preparation: Preparation, index: epath.PathLike, workers: int) -> SampleLengths:
    """Reads the index of `source` in the folder `index`, or measures every sample and writes it.

    Pictures are not read: whether they can be is found out when a batch needs them, or by `dynllava data check`.

    Args:
        source: where samples come from.
        preparation: how they become tokens.
        index: a folder, made when it is not there. Several hosts may share it.
        workers: processes that measure; 0 does it here.

    Raises:
        InputError: the folder cannot be written.
        CheckError: a worker process was killed.
    """
    key = hashlib.sha256(
        json.dumps([_VERSION, source.fingerprint(), len(source), preparation.fingerprint]).encode()
    ).hexdigest()
    stem = re.sub(r"[^\w.-]", "_", source.name.rstrip("/").split("/")[-1])
    file = epath.Path(index) / f"{stem}.lengths-{key[:16]}.npz"
    if (known := _read(file, key, len(source))) is not None:
        return known
    _check_writable(file)
    found = _measure(source, preparation, workers, key)
    _write(file, found)
    return found


def index_folder(spec: str, index: str | None) -> epath.Path:
    """Where the index of the source `spec` lies: in `index` (`data.index`), else beside the source.

    A TFDS data set has no place of its own here; its index lies in the user's cache folder.
    """
    if index is not None:
        return folder(index)
    if spec.startswith("tfds:"):
        return epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dynllava_jax"
    return folder(spec).parent


def _measure(source: Source, preparation: Preparation, workers: int, key: str) -> SampleLengths:
    count = len(source)
    table = np.zeros((3, count), np.int32)
    failures: dict[int, SampleError] = {}
    results = in_order(_Measure(source, preparation), range(count), min(workers, count // _WORTH_A_PROCESS))
    with Progress(f"lengths of {source.name}", "sample") as progress:
        progress.start(count)
        for index, result in enumerate(results):
            if isinstance(result, SampleError):
                failures[index] = result
            else:
                table[:, index] = result
            progress.advance()
    return SampleLengths(*table, failures=failures, key=key)


@dataclasses.dataclass(frozen=True)
class _Measure:
    """Measures one sample, in whatever process."""

    source: Source
    preparation: Preparation

    def __call__(self, index: int) -> tuple[int, int, int] | SampleError:
        try:
            sample, uncut = self.preparation.sample(self.source.record(index))
        except SampleError as error:
            return error
        return sample.length, uncut, sample.image_count


def _read(file: epath.Path, key: str, count: int) -> SampleLengths | None:
    """The index, or None when there is none or it is damaged: it is then made anew."""
    if not file.exists():
        return None
    try:
        with np.load(io.BytesIO(file.read_bytes()), allow_pickle=False) as content:
            table, told = content["table"], json.loads(content["failures"].tobytes())
            same = bytes(content["key"].tobytes()).decode() == key
    except (OSError, EOFError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        _log.warning("the index %s cannot be read (%s) and is made anew", file, error)
        return None
    if not same or table.shape != (3, count):
        return None
    return SampleLengths(*table, failures={int(index): SampleError(*parts) for index, *parts in told}, key=key)


def _write(file: epath.Path, found: SampleLengths) -> None:
    told = [[index, error.id, error.reason, error.detail] for index, error in sorted(found.failures.items())]
    content = io.BytesIO()
    np.savez_compressed(
        content,
        table=np.stack([found.lengths, found.uncut, found.image_counts]),
        failures=np.frombuffer(json.dumps(told).encode(), np.uint8),
        key=np.frombuffer(found.key.encode(), np.uint8),
    )
    # Whole or not there at all, also when several hosts write it at the same time.
    partial = _partial(file)
    try:
        partial.write_bytes(content.getvalue())
        partial.replace(file)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
        raise _unwritable(file, error) from None
    _log.info("lengths of %d samples written to %s", found.lengths.size, file)


def _check_writable(file: epath.Path) -> None:
    """Before the work rather than after it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        _partial(file).write_bytes(b"")
        _partial(file).unlink()
    except OSError as error:
        raise _unwritable(file, error) from None


def _unwritable(file: epath.Path, error: OSError) -> InputError:
    return InputError(
        f"The index of token lengths cannot be written to {file.parent} ({error.strerror or error}); set data.index to "
        "a folder that can."
    )


def _partial(file: epath.Path) -> epath.Path:
    return file.with_name(f".{file.name}.{os.uname().nodename}-{os.getpid()}.tmp")
