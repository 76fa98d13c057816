"""A folder of PyTorch weights as named tensors that are read one at a time.

safetensors are read without torch. `.bin` files are pickles: torch reads them with `weights_only=True`, mapped, so
code in them is refused and never run.
"""

import dataclasses
import pickle
import warnings
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import ml_dtypes
import numpy as np

from dynllava_jax.checkpoint.paths import AnyPath, size_of
from dynllava_jax.config.json_file import read_object
from dynllava_jax.convert.safetensors_file import MAX_RANK, SafetensorsFile
from dynllava_jax.errors import InputError, shown, some

SINGLE = ("model.safetensors", "pytorch_model.bin")
SHARDED = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
"""In the order of preference of transformers: safetensors before pickles, one file before shards."""

_CANDIDATES = (SINGLE[0], SHARDED[0], SINGLE[1], SHARDED[1])


@dataclasses.dataclass(frozen=True)
class TensorInfo:
    shape: tuple[int, ...]
    dtype: np.dtype
    file: str
    """Name of the file inside the folder."""

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * self.dtype.itemsize


@runtime_checkable
class _File(Protocol):
    @property
    def entries(self) -> dict[str, Any]: ...
    def read(self, name: str) -> np.ndarray: ...


class TorchWeights:
    """`infos` by tensor name, without reading any data; `read` gives one tensor, backed by the mapped file.

    Raises:
        InputError: no weights in the folder, a file that the index names is missing, lies outside the folder, or
            holds other tensors than the index says; a truncated file; a pickle with code in it.
    """

    def __init__(self, folder: AnyPath, candidates: tuple[str, ...] = _CANDIDATES):
        self.folder = folder
        self._files: dict[str, _File] = {}
        self.infos: dict[str, TensorInfo] = {}
        found = next((name for name in candidates if (folder / name).is_file()), None)
        if found is None:
            raise InputError(f"{folder} holds no PyTorch weights: none of {', '.join(candidates)}.")
        expected = _weight_map(folder, found) if found in SHARDED else None
        for name in [found] if expected is None else sorted(set(expected.values())):
            self._add(name)
        if expected is not None:
            self._check_index(found, expected)

    def read(self, name: str) -> np.ndarray:
        return self._files[self.infos[name].file].read(name)

    def stamp(self) -> list[tuple[str, int, int]]:
        """Name, size and time of change of each file: what tells whether they are the same as before."""
        return [stamp_of(self.folder, name) for name in sorted(self._files)]

    def _add(self, name: str) -> None:
        path = self.folder / name
        if not path.is_file():
            raise InputError(f"{path} is missing, but the index beside it names it.")
        file: _File = SafetensorsFile(path) if name.endswith(".safetensors") else _PickleFile(path)
        self._files[name] = file
        for tensor, entry in file.entries.items():
            if tensor in self.infos:
                raise InputError(f"{self.folder}: {tensor} lies in two files, {self.infos[tensor].file} and {name}.")
            self.infos[tensor] = TensorInfo(tuple(entry.shape), entry.dtype, name)

    def _check_index(self, index: str, expected: dict[str, str]) -> None:
        wrong = [name for name, file in expected.items() if name not in self.infos or self.infos[name].file != file]
        wrong += [name for name in self.infos if name not in expected]
        if wrong:
            raise InputError(
                f"{self.folder / index} and its files disagree about {len(wrong)} tensors: {some(wrong)}; "
                "download the folder again."
            )


def stamp_of(folder: AnyPath, name: str) -> tuple[str, int, int]:
    """Name, size and time of change of a file."""
    file = folder / name
    changed = file.stat().st_mtime_ns if isinstance(file, Path) else int(file.stat().mtime)
    return name, size_of(file), changed


def has_torch_weights(folder: AnyPath) -> bool:
    return any((folder / name).is_file() for name in _CANDIDATES)


def read_json(path: AnyPath) -> dict[str, Any]:
    """Raises InputError when the file is no JSON object."""
    return read_object(path, "download it again")


def _weight_map(folder: AnyPath, index: str) -> dict[str, str]:
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{folder / index} has no weight_map.")
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file or file in ("", ".", ".."):
            raise InputError(f"{folder / index} names {shown(file)}, which is not a file beside it.")
        if not file.endswith((".safetensors", ".bin")):
            raise InputError(f"{folder / index} names {shown(file)}, which is neither .safetensors nor .bin.")
    return weight_map


@dataclasses.dataclass(frozen=True)
class _PickleEntry:
    shape: tuple[int, ...]
    dtype: np.dtype


class _PickleFile:
    """A `torch.save` file of a state dict."""

    def __init__(self, path: AnyPath):
        self._tensors = _load_pickle(path)
        self.entries: dict[str, _PickleEntry] = {}
        for name, tensor in self._tensors.items():
            dtype = _numpy_dtype(tensor)
            if dtype is None or tensor.dim() > MAX_RANK:
                raise InputError(f"{path}: {name} is {_describe(tensor)}, not a plain tensor of numbers.")
            self.entries[name] = _PickleEntry(tuple(tensor.shape), dtype)

    def read(self, name: str) -> np.ndarray:
        import torch

        tensor = self._tensors[name].detach().contiguous()
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()


def _numpy_dtype(tensor: Any) -> np.dtype | None:
    import torch

    if not isinstance(tensor, torch.Tensor) or tensor.is_sparse or tensor.is_quantized or tensor.is_meta:
        return None
    if tensor.dtype == torch.bfloat16:
        return np.dtype(ml_dtypes.bfloat16)
    try:
        return torch.empty(0, dtype=tensor.dtype).numpy().dtype
    except TypeError:
        return None


def _describe(value: Any) -> str:
    shape = getattr(value, "shape", ())
    more = f" and {len(shape)} dimensions" if len(shape) > MAX_RANK else ""
    return f"of type {type(value).__name__} with dtype {getattr(value, 'dtype', None)}{more}"


def _load_pickle(path: AnyPath) -> dict[str, Any]:
    if not isinstance(path, Path):
        raise InputError(f"{path}: .bin files are read from local disks only; copy the folder, or take safetensors.")
    try:
        import torch
    except ImportError:
        raise InputError(
            f"{path} is a PyTorch pickle, which only torch can read: pip install 'dynllava_jax[torch]'."
        ) from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what matters here is an error
            # Only zip files can be mapped; the old format is read whole.
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path) or None)
    except Exception as error:  # torch raises RuntimeError, EOFError, KeyError, ValueError … for damaged files
        if isinstance(error, pickle.UnpicklingError) and ("Unsupported" in str(error) or "GLOBAL" in str(error)):
            raise InputError(
                f"{path} is a pickle with code in it and was refused; nothing of it was run. Ask for safetensors."
            ) from None
        raise InputError(f"{path} is truncated or no PyTorch file.") from None
    if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
        raise InputError(f"{path} holds no state dict (names and tensors).")
    return loaded


def _is_zip(path: AnyPath) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"
