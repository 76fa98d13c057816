"""The safetensors format, read lazily and with suspicion.

8 bytes little-endian header length, a JSON header of name -> {dtype, shape, data_offsets}, then the bytes
(github.com/huggingface/safetensors, format section). Files are mapped, so a tensor costs memory only while it is
looked at, and bfloat16 needs neither torch nor a copy.
"""

import dataclasses
import json
import math
import struct
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from dynllava_jax.checkpoint.paths import AnyPath, size_of
from dynllava_jax.errors import InputError, shown

MAX_HEADER = 100_000_000
"""The format's own limit, in bytes; a longer one is a damaged or hostile file."""

MAX_RANK = 32
"""TensorStore, in which checkpoints are written, has no more dimensions."""

_MAX_ELEMENTS = 1 << 59
"""Above, numpy has no array of that shape, even where another dimension is 0."""

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One tensor of a file: where its bytes lie (absolute offset) and what they mean."""

    dtype: np.dtype
    shape: tuple[int, ...]
    offset: int


class SafetensorsFile:
    """`entries` by tensor name; `read` gives a view of the mapped file, or from a bucket only a tensor's own bytes.

    Raises:
        InputError: naming the file and what is wrong with it, at once and not when a tensor is read.
    """

    def __init__(self, path: AnyPath):
        self._path = path
        size = size_of(path)
        header, start = _header(path, size)
        self.entries = {
            name: _entry(path, name, entry, start, size) for name, entry in header.items() if name != "__metadata__"
        }
        self._bytes = np.memmap(path, np.uint8, "r") if isinstance(path, Path) else None

    def read(self, name: str) -> np.ndarray:
        entry = self.entries[name]
        count = math.prod(entry.shape) * entry.dtype.itemsize
        if self._bytes is None:
            with self._path.open("rb") as file:
                file.seek(entry.offset)
                return np.frombuffer(file.read(count), entry.dtype).reshape(entry.shape)
        return self._bytes[entry.offset : entry.offset + count].view(entry.dtype).reshape(entry.shape)


def _header(path: AnyPath, size: int) -> tuple[dict[str, Any], int]:
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else -1
        if length < 0 or length > size - 8:
            raise InputError(f"{path} is truncated or no safetensors file: {size} bytes cannot hold its header.")
        if length > MAX_HEADER:
            raise InputError(f"{path} is no safetensors file: its header claims {length} bytes.")
        text = file.read(length)
    try:
        header = json.loads(text, object_pairs_hook=lambda pairs: _once(path, pairs))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no safetensors file: its header is not JSON.") from None
    if not isinstance(header, dict):
        raise InputError(f"{path} is no safetensors file: its header is not an object.")
    return header, 8 + length


def _once(path: AnyPath, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """JSON objects keep the last of two equal keys; here that would hide a tensor."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InputError(f"{path}: a name occurs twice in the header.")
    return found


def _entry(path: AnyPath, name: str, entry: Any, start: int, size: int) -> Entry:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        numbers = (*shape, begin, end)
        if any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in numbers) or begin > end:
            raise ValueError
        if len(shape) > MAX_RANK or math.prod(n or 1 for n in shape) > _MAX_ELEMENTS:
            raise ValueError
    except (KeyError, TypeError, ValueError):
        raise InputError(f"{path}: the header's entry for {name} is malformed.") from None
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise InputError(f"{path}: {name} has dtype {shown(dtype)}, which is not supported.")
    if start + end > size:
        raise InputError(f"{path} is truncated: {name} ends at byte {start + end} of {size}.")
    if math.prod(shape) * DTYPES[dtype].itemsize != end - begin:
        raise InputError(f"{path}: {name} has shape {list(shape)} but {end - begin} bytes.")
    return Entry(DTYPES[dtype], shape, start + begin)
