"""What happens to a tensor between torch's form and ours; each step knows its own inverse."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np

_STRIP, _COLUMNS, _PAD = 64, 512, 32


@runtime_checkable
class Transform(Protocol):
    """Works on arrays of any dtype without changing a value.

    `shape` says what `apply` will give, None if nothing; `source_shape` what `invert` will give.
    """

    def apply(self, tensor: np.ndarray) -> np.ndarray: ...
    def invert(self, leaf: np.ndarray) -> np.ndarray: ...
    def shape(self, source: tuple[int, ...]) -> tuple[int, ...] | None: ...
    def source_shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]: ...


@dataclasses.dataclass(frozen=True)
class Keep:
    """Vectors, embeddings: the same in both."""

    def apply(self, tensor: np.ndarray) -> np.ndarray:
        return tensor

    def invert(self, leaf: np.ndarray) -> np.ndarray:
        return leaf

    def shape(self, source: tuple[int, ...]) -> tuple[int, ...] | None:
        return source

    def source_shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
        return leaf


@dataclasses.dataclass(frozen=True)
class Transpose:
    """torch's [out, in] weight and our [in, out] kernel."""

    def apply(self, tensor: np.ndarray) -> np.ndarray:
        return _transposed(tensor)

    def invert(self, leaf: np.ndarray) -> np.ndarray:
        return _transposed(leaf)

    def shape(self, source: tuple[int, ...]) -> tuple[int, ...] | None:
        return source[::-1] if len(source) == 2 else None

    def source_shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
        return leaf[::-1]


@dataclasses.dataclass(frozen=True)
class FlattenPatch:
    """torch's convolution [C, channel, row, column] and our kernel [row·column·channel, C] over flat patches."""

    channels: int = 3

    def apply(self, tensor: np.ndarray) -> np.ndarray:
        return tensor.transpose(2, 3, 1, 0).reshape(-1, tensor.shape[0])

    def invert(self, leaf: np.ndarray) -> np.ndarray:
        _, _, side, _ = self.source_shape(leaf.shape)
        return leaf.reshape(side, side, self.channels, leaf.shape[1]).transpose(3, 2, 0, 1)

    def shape(self, source: tuple[int, ...]) -> tuple[int, ...] | None:
        if len(source) != 4 or source[1] != self.channels or source[2] != source[3]:
            return None
        return (source[1] * source[2] * source[3], source[0])

    def source_shape(self, leaf: tuple[int, ...]) -> tuple[int, ...]:
        side = round((leaf[0] / self.channels) ** 0.5)
        return (leaf[1], self.channels, side, side)


def _transposed(matrix: np.ndarray) -> np.ndarray:
    """A contiguous transpose, strip by strip through a buffer: several times as fast as numpy's own.

    Rows of a matrix are a power of two apart more often than not, so that a column falls into a few lines of the
    processor's cache only; in the buffer they are not.
    """
    words = matrix.view(f"u{matrix.itemsize}") if matrix.itemsize in (2, 4) else matrix
    height, width = words.shape
    out = np.empty((width, height), words.dtype)
    buffer = np.empty((_STRIP, width + _PAD), words.dtype)
    for i in range(0, height, _STRIP):
        rows = min(_STRIP, height - i)
        buffer[:rows, :width] = words[i : i + rows]
        for j in range(0, width, _COLUMNS):
            end = min(j + _COLUMNS, width)
            out[j:end, i : i + rows] = buffer[:rows, j:end].T
    return out.view(matrix.dtype)
