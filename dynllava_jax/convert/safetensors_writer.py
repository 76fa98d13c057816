"""safetensors files written in any order of tensors: their places are fixed before the first byte.

A folder of them is one model as transformers reads it: `model.safetensors`, or shards with an index. What is finished
is noted in a journal beside them, so that a killed run goes on where it was; `finish` removes it.
"""

import dataclasses
import json
import struct
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from dynllava_jax.convert.safetensors_file import DTYPES

SHARD_BYTES = 5_000_000_000
"""What transformers cuts at, too."""

INDEX = "model.safetensors.index.json"
JOURNAL = "written.txt"

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclasses.dataclass(frozen=True)
class Spec:
    """A tensor to come."""

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


class SafetensorsWriter:
    """Fills the files of a folder, which exists. Files of an earlier run in it are continued, see `done`.

    Args:
        folder: where the files go.
        specs: every tensor, in the order in which they lie in the files.
        shard_bytes: of a file at most, a single tensor that is larger apart.
        on_shard: is given each finished file, and may take it away.
        taken: whether an earlier run has finished the file of this name and size and taken it away.
    """

    def __init__(
        self,
        folder: Path,
        specs: Iterable[Spec],
        shard_bytes: int = SHARD_BYTES,
        on_shard: Callable[[Path], None] | None = None,
        taken: Callable[[str, int], bool] = lambda name, size: False,
    ):
        self._folder = folder
        self._shards = _shards(list(specs), shard_bytes)
        self._places: dict[str, tuple[str, int, Spec]] = {}
        elsewhere: set[str] = set()
        for name, shard in self._shards.items():
            header, offsets = _header(shard)
            for spec in shard:
                self._places[spec.name] = (name, len(header) + offsets[spec.name], spec)
            size = len(header) + sum(spec.nbytes for spec in shard)
            if taken(name, size):
                elsewhere.update(spec.name for spec in shard)
                continue
            # Also where the file is there: a kill may have come before all of this was written.
            with (folder / name).open("r+b" if (folder / name).exists() else "wb") as file:
                file.write(header)
                file.truncate(size)
        journal = folder / JOURNAL
        written = journal.read_text() if journal.exists() else ""
        # A line without its end was cut off by a kill.
        self.done = elsewhere | {line for line in written.split("\n")[:-1] if line in self._places}
        self._on_shard = on_shard
        self._missing = {
            name: sum(spec.name not in self.done for spec in shard) for name, shard in self._shards.items()
        }
        self._lock = threading.Lock()
        self._journal = journal.open("w")
        self._journal.writelines(f"{name}\n" for name in sorted(self.done))
        self._journal.flush()

    def file_of(self, name: str) -> str:
        """The file that a tensor lies in."""
        return self._places[name][0]

    def put(self, name: str, tensor: np.ndarray) -> None:
        """Writes one tensor to its place; threads may do so at the same time."""
        file_name, offset, spec = self._places[name]
        if tensor.shape != spec.shape or tensor.dtype != spec.dtype:
            raise ValueError(f"{name} is {tensor.dtype} {tensor.shape}, not {spec.dtype} {spec.shape}")
        with (self._folder / file_name).open("r+b", buffering=0) as file:
            file.seek(offset)
            view = np.ascontiguousarray(tensor).reshape(-1).view(np.uint8).data
            while view:
                view = view[file.write(view) :]
        with self._lock:
            self.done.add(name)
            self._journal.write(f"{name}\n")
            self._journal.flush()
            self._missing[file_name] -= 1
            finished = self._missing[file_name] == 0
        if finished and self._on_shard is not None:
            self._on_shard(self._folder / file_name)

    def finish(self) -> None:
        """Writes the index of several shards.

        Raises:
            ValueError: tensors were not put.
        """
        if missing := self._places.keys() - self.done:
            raise ValueError(f"{len(missing)} tensors were not written, such as {min(missing)}")
        self.close()
        (self._folder / JOURNAL).unlink()
        if len(self._shards) > 1:
            total = sum(spec.nbytes for shard in self._shards.values() for spec in shard)
            weight_map = {name: file for name, (file, _, _) in sorted(self._places.items())}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (self._folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")

    def close(self) -> None:
        self._journal.close()


def _shards(specs: list[Spec], limit: int) -> dict[str, list[Spec]]:
    groups: list[list[Spec]] = [[]]
    size = 0
    for spec in specs:
        if groups[-1] and size + spec.nbytes > limit:
            groups.append([])
            size = 0
        groups[-1].append(spec)
        size += spec.nbytes
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05d}-of-{len(groups):05d}.safetensors": group for i, group in enumerate(groups, 1)}


def _header(shard: list[Spec]) -> tuple[bytes, dict[str, int]]:
    """The length and the JSON in front of the data, and where each tensor begins behind them."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offsets: dict[str, int] = {}
    end = 0
    for spec in shard:
        begin, end = end, end + spec.nbytes
        offsets[spec.name] = begin
        entries[spec.name] = {
            "dtype": _NAMES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text, offsets
