"""The one place that talks to Orbax: a flat dict of numpy arrays as an uncompressed pytree, and back."""

from collections.abc import Mapping
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


def load(path: Path) -> dict[str, np.ndarray]:
    """Raises InputError when the folder is missing or too damaged for Orbax to read."""
    try:
        with _context():
            folder = str(path.absolute())
            loaded: Any = ocp.load(folder, ocp.metadata(folder).metadata)
    except Exception as error:  # whatever Orbax and TensorStore raise for a damaged folder
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} is missing or damaged: {reason[:200]}") from None
    return {str(name): np.asarray(leaf) for name, leaf in loaded.items()}


def _context() -> ocp.Context:
    """Uncompressed: float weights hardly compress, and the time is better spent reading."""
    context = ocp.Context()
    context.array.saving.use_compression = False
    return context
