"""The one place that talks to Orbax: flat dicts of arrays as uncompressed pytrees, and back."""

import contextlib
import gc
import logging
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from orbax.checkpoint import v1 as ocp

from dynllava_jax.checkpoint.paths import AnyPath, is_remote
from dynllava_jax.errors import InputError

_LATE = 0.2
"""Seconds in which the reads that were under way when one failed come to their end."""


def save(path: AnyPath, leaves: Mapping[str, np.ndarray | jax.Array]) -> None:
    """Writes a flat dict; each shard of an array on devices becomes a chunk of its own.

    Raises InputError for an array without elements, which Orbax cannot keep.
    """
    for name, leaf in leaves.items():
        if leaf.size == 0:
            raise InputError(f"{name} has shape {list(leaf.shape)}: a tensor without elements cannot be stored.")
    with _context():
        ocp.save(_text(path), dict(leaves))


def load(path: AnyPath, recorded: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Reads the leaves of which `recorded` gives shape and dtype.

    Raises:
        InputError: the folder is missing or too damaged for Orbax to read.
    """
    loaded = _reading(path, lambda: ocp.load(_text(path), _on_host(recorded)))
    return {str(name): np.asarray(leaf) for name, leaf in loaded.items()}


def save_async(path: epath.Path, items: Mapping[str, Mapping[str, jax.Array]]) -> Callable[[], None]:
    """Writes several flat dicts of device arrays as one checkpoint, each under its name. Collective.

    When it returns, the arrays are copied to the host and may be donated; the rest runs in the background. The folder
    has its name only when it is whole.

    Returns:
        A function that waits for the rest and raises what went wrong.
    """
    with _context():
        saving = ocp.save_checkpointables_async(_text(path), {name: dict(leaves) for name, leaves in items.items()})
    return saving.result


def restore(
    path: epath.Path, like: Mapping[str, Mapping[str, jax.ShapeDtypeStruct]]
) -> dict[str, dict[str, jax.Array]]:
    """Reads items of `save_async` onto the devices that the shardings in `like` name. Collective.

    Raises:
        InputError: as `load`.
    """
    # One by one: Orbax leaves the others unawaited when one of several fails.
    return {item: _load_item(path, item, leaves) for item, leaves in like.items()}


def load_some(path: epath.Path, item: str, recorded: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Reads some leaves of one item of `save_async` to the host.

    Raises:
        InputError: as `load`.
    """
    leaves = _load_item(path, item, _on_host(recorded), partial=True)
    return {name: np.asarray(leaf) for name, leaf in leaves.items()}


def _text(path: AnyPath) -> str:
    """Orbax takes no relative paths."""
    return str(path) if is_remote(path) else str(Path(path).absolute())


def _load_item(path: epath.Path, item: str, like: Mapping[str, Any], partial: bool = False) -> dict[str, Any]:
    def read() -> Any:
        return ocp.load(_text(path), dict(like), checkpointable_name=item)

    return {str(name): leaf for name, leaf in _reading(path / item, read, partial).items()}


def _on_host(recorded: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Shapes without memory: Orbax wants arrays to know that it shall return numpy's."""
    return {name: np.broadcast_to(np.zeros((), leaf["dtype"]), leaf["shape"]) for name, leaf in recorded.items()}


def _reading(path: Any, read: Callable[[], Any], partial: bool = False) -> Any:
    with _quiet():
        try:
            with _context(partial):
                return read()
        except Exception as error:  # whatever Orbax and TensorStore raise for a damaged folder
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        time.sleep(_LATE)
        gc.collect()  # failed futures are logged, and forgotten tasks warned of, when they are collected
    raise InputError(f"{path} is missing or damaged: {reason[:200]}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs every leaf that it cannot read, in pages, and forgets tasks; the one error raised names the folder.

    It also closes its event loop while other reads are under way, whose threads then complain.
    """
    tell = sys.unraisablehook

    def unless_late(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            tell(unraisable)

    sys.unraisablehook = unless_late
    loggers = [logger for name in ("asyncio", "absl") if not (logger := logging.getLogger(name)).disabled]
    for logger in loggers:
        logger.disabled = True
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
            yield
    finally:
        sys.unraisablehook = tell
        for logger in loggers:
            logger.disabled = False


def _context(partial: bool = False) -> ocp.Context:
    """Uncompressed: float weights hardly compress, and the time is better spent reading.

    Without Orbax's own copy of every host array, which takes several times as long as writing it: nobody changes an
    array while it is saved.
    """
    context = ocp.Context()
    context.memory.deepcopy_host_arrays = False
    context.pytree.loading.partial_load = partial
    context.array.saving.use_compression = False
    return context
