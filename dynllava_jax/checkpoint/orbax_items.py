"""The one place that talks to Orbax: a flat dict of numpy arrays as an uncompressed pytree, and back."""

import contextlib
import gc
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from orbax.checkpoint import v1 as ocp

from dynllava_jax.errors import InputError


def save(path: Path, leaves: Mapping[str, np.ndarray]) -> None:
    """Raises InputError for an array without elements, which Orbax cannot keep."""
    for name, leaf in leaves.items():
        if leaf.size == 0:
            raise InputError(f"{name} has shape {list(leaf.shape)}: a tensor without elements cannot be stored.")
    with _context():
        ocp.save(str(path.absolute()), dict(leaves))


def load(path: Path, recorded: Mapping[str, Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Reads the leaves of which `recorded` gives shape and dtype.

    Raises:
        InputError: the folder is missing or too damaged for Orbax to read.
    """
    # Shapes without memory: Orbax wants arrays to know that it shall return numpy's.
    like = {name: np.broadcast_to(np.zeros((), leaf["dtype"]), leaf["shape"]) for name, leaf in recorded.items()}
    with _quiet():
        try:
            with _context():
                loaded: Any = ocp.load(str(path.absolute()), like)
            return {str(name): np.asarray(leaf) for name, leaf in loaded.items()}
        except Exception as error:  # whatever Orbax and TensorStore raise for a damaged folder
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        gc.collect()  # failed futures are logged when they are collected
    raise InputError(f"{path} is missing or damaged: {reason[:200]}")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Orbax logs every leaf that it cannot read, in pages; the one error raised names the folder."""
    loggers = [logger for name in ("asyncio", "absl") if not (logger := logging.getLogger(name)).disabled]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger in loggers:
            logger.disabled = False


def _context() -> ocp.Context:
    """Uncompressed: float weights hardly compress, and the time is better spent reading."""
    context = ocp.Context()
    context.array.saving.use_compression = False
    return context
