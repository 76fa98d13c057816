"""What a checkpoint holds: its parameters with shapes, dtypes, sizes and norms, read one part at a time.

The content hash is one for all parameters and carried tensors, whatever files they lie in: a model that goes to PyTorch
and comes back has the same one.
"""

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynllava_jax.checkpoint.leaves import nbytes
from dynllava_jax.checkpoint.source import open_source
from dynllava_jax.config.json_codec import to_json


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter, that of all layers together.

    Attributes:
        path: layers are written as `*`.
        layers: how many it has, None outside of stacks.
        shape, dtype: of one layer's.
        nbytes: of all.
        norm: root of the sum of squares over all layers, in float64.
        not_finite: values that are NaN or infinite.
    """

    path: str
    layers: int | None
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    norm: float
    not_finite: int


@dataclasses.dataclass(frozen=True)
class Inspection:
    """A checkpoint's content.

    Attributes:
        path: as given.
        config: of the model, as JSON.
        facts: what conversion or training noted.
        rows: the parameters, in order.
        carried: tensors of the source that the model does not use.
        dtypes: bytes by dtype.
        parameters, nbytes: of all rows.
        content_hash: see the module.
    """

    path: str
    config: dict[str, Any]
    facts: Mapping[str, Any]
    rows: tuple[Row, ...]
    carried: int
    dtypes: dict[str, int]
    parameters: int
    nbytes: int
    content_hash: str


def inspect(
    path: str | Path,
    *,
    on_start: Callable[[int], None] = lambda nbytes: None,
    on_part: Callable[[int], None] = lambda nbytes: None,
) -> Inspection:
    """Reads all of a model or training checkpoint; every leaf is checked against its hash on the way.

    Args:
        path: see `source.open_source`.
        on_start: is told the bytes to come.
        on_part: is told the bytes of each part read.

    Raises:
        InputError: no checkpoint, or a damaged one.
    """
    source = open_source(path)
    size = {leaf: nbytes(shape, source.dtypes[leaf]) for leaf, shape in source.shapes.items()}
    on_start(sum(size.values()))
    squares: dict[str, float] = {}
    not_finite: dict[str, int] = {}
    for leaves in source.read(source.shapes.keys()):
        for leaf in leaves.keys() & source.shapes.keys():
            squares[leaf], not_finite[leaf] = _measure(leaves[leaf])
            on_part(size[leaf])
    groups: dict[tuple[str, tuple[int, ...], str], list[str]] = {}
    for leaf in sorted(source.shapes, key=_order):
        key = (re.sub(r"(?<=layers/|blocks/)\d+", "*", leaf), source.shapes[leaf], source.dtypes[leaf])
        groups.setdefault(key if _stacked(leaf) else (leaf, *key[1:]), []).append(leaf)
    rows = tuple(
        Row(
            name,
            len(leaves) if "*" in name else None,
            shape,
            dtype,
            sum(size[leaf] for leaf in leaves),
            float(np.sqrt(sum(squares[leaf] for leaf in leaves))),
            sum(not_finite[leaf] for leaf in leaves),
        )
        for (name, shape, dtype), leaves in groups.items()
    )
    dtypes: Counter[str] = Counter()
    for row in rows:
        dtypes[row.dtype] += row.nbytes
    return Inspection(
        path=str(path),
        config=to_json(source.config),
        facts=source.facts,
        rows=rows,
        carried=len(source.carried()),
        dtypes=dict(dtypes),
        parameters=sum(math.prod(shape) for shape in source.shapes.values()),
        nbytes=sum(size.values()),
        content_hash=source.content_hash,
    )


def _stacked(leaf: str) -> bool:
    return leaf.startswith(("decoder/layers/", "vision/layers/", "image_predictor/blocks/"))


def _order(leaf: str) -> tuple[Any, ...]:
    """Layers by number, not by letter."""
    return tuple(int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", leaf))


_CHUNK = 1 << 22


def _measure(leaf: np.ndarray) -> tuple[float, int]:
    """Sum of squares and count of values that are not finite, of a small piece at a time."""
    flat = leaf.reshape(-1)
    total, bad = 0.0, 0
    for start in range(0, flat.size, _CHUNK):
        piece = flat[start : start + _CHUNK].astype(np.float32)
        bad += int(piece.size - np.count_nonzero(np.isfinite(piece)))
        total += float(np.sum(np.square(piece, dtype=np.float64)))
    return total, bad
