"""A training run as a model checkpoint: what it trained and what it left alone in one folder, adapters merged."""

import dataclasses
import math
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from etils import epath

from dynllava_jax.checkpoint import store, trained
from dynllava_jax.checkpoint.adapters import is_adapter
from dynllava_jax.checkpoint.leaves import item_of, targets
from dynllava_jax.checkpoint.load import check_complete
from dynllava_jax.checkpoint.paths import as_path, reachable
from dynllava_jax.checkpoint.source import Source, open_source
from dynllava_jax.convert.plan import cast, named_dtype
from dynllava_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Report:
    """What was merged.

    Attributes:
        dst: the model checkpoint.
        src: the training checkpoint that was taken.
        step: optimizer steps that it has done.
        leaves, carried: how many parameters (by layer) were written, and tensors kept for export.
        adapters: how many kernels (by stack) had adapters.
        nbytes: written; seconds: wall time.
    """

    dst: str
    src: str
    step: int
    leaves: int
    carried: int
    adapters: int
    nbytes: int
    seconds: float


def merge(
    src: str | os.PathLike,
    dst: str | os.PathLike,
    *,
    dtype: str | None = None,
    on_start: Callable[[int], None] = lambda count: None,
    on_part: Callable[[int], None] = lambda count: None,
) -> Report:
    """Writes the model of a training run as a model checkpoint at DST.

    A run keeps a parameter of all layers as one array, a model checkpoint all parameters of a layer together; what was
    read waits in a temporary file for its layer, so that memory holds one array, or one layer, at a time. The file lies
    beside DST, or in Python's temporary folder where DST is on a bucket.

    Args:
        src: a work folder, which means its newest checkpoint, or one of its checkpoints.
        dst: must not exist, or be empty; DST and the temporary file each take the size of the model.
        dtype: one of `config.check.DTYPES`; None keeps what is stored, which is float32 for all that was trained.
        on_start: is told the number of values to read.
        on_part: is told the number of values in each part read.

    Raises:
        InputError: SRC is no training run, or damaged; DST is taken or cannot be written. Nothing is left at DST.
    """
    started = time.monotonic()
    dst = reachable(as_path(dst))
    store.check_free(dst)
    target = None if dtype is None else named_dtype(dtype)
    step = trained.find(epath.Path(as_path(src)))
    source = open_source(src if step is None else str(step))
    if step is None:
        raise InputError(f"{src} is a model checkpoint already: there is nothing to merge.")
    info = trained.read_info(step, ())
    check_complete(str(step), targets(source.config), source.shapes)
    on_start(sum(math.prod(shape) for shape in source.shapes.values()))
    carried = source.carried()
    written: list[int] = []
    folder = dst.parent if isinstance(dst, Path) else None
    store.write(
        dst,
        source.config,
        _leaves(source, folder, target, on_part),
        carried=carried.items(),
        extras=store.Extras(trained.read_files(step), {**source.facts, "run": str(step), "step": info.step}),
        progress=written.append,
    )
    return Report(
        dst=str(dst),
        src=str(step),
        step=info.step,
        leaves=len(source.shapes),
        carried=len(carried),
        adapters=sum(map(is_adapter, info.items[trained.PARAMS])) // 2,
        nbytes=sum(written),
        seconds=time.monotonic() - started,
    )


def _leaves(
    source: Source, folder: Path | None, dtype: np.dtype | None, on_part: Callable[[int], None]
) -> Iterator[tuple[str, np.ndarray]]:
    """All leaves, item by item, whatever order they are read in."""
    # The file has no name: nothing is left of it, however this process ends.
    with tempfile.TemporaryFile(dir=folder) as file:
        places: dict[str, tuple[int, np.dtype]] = {}
        for leaves in source.read(source.shapes.keys()):
            for name in leaves.keys() & source.shapes.keys():
                leaf = cast(leaves[name], dtype, name)
                places[name] = (file.tell(), leaf.dtype)
                file.write(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
                on_part(leaf.size)
        for name in sorted(places, key=lambda name: (item_of(name), name)):
            start, stored = places[name]
            shape = source.shapes[name]
            file.seek(start)
            yield name, np.frombuffer(file.read(math.prod(shape) * stored.itemsize), stored).reshape(shape)
