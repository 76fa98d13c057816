"""A folder of recordings of the official code: what it holds, read and checked before anything is computed.

A case is `cases/NAME.npz` (arrays) beside `cases/NAME.json` (their meaning, facts, the sparsification in effect).

N images, H W pixels.
"""

import dataclasses
import difflib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from dynllava_jax.config.json_file import is_whole, read_object, wrong
from dynllava_jax.errors import InputError, shown
from dynllava_jax.verify.tolerance import LOGITS

_INFO_ROWS = ("input_embeds_indices", "groups", "in_no_group", "grad_norms")
"""Facts in `info` that are compared; a key may go on after the name, as `input_embeds_indices_before` does."""


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """One recorded situation.

    Attributes:
        name: such as "05_prefill_kv".
        folder: where the files lie.
        summary, notes: the recording's own words.
        info: facts that are no arrays.
        sparse_config: the official `sparse_config` in effect, or None: the checkpoint's own.
        inputs: what was fed, by name; everything that is no output.
        outputs: what the official code gave, by name; this is what verification compares.
        descriptions: the recording's own words about each array.
    """

    name: str
    folder: Path
    summary: str
    notes: tuple[str, ...]
    info: Mapping[str, Any]
    sparse_config: Mapping[str, Any] | None
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, np.ndarray]
    descriptions: Mapping[str, str]

    def images(self) -> Float[np.ndarray, "N H W 3"]:
        """The normalised pixels that `info.images` names, channels last.

        Raises:
            InputError: the case names no images, or a file or array that is not there.
        """
        where = f"{self.folder / self.name}.json: info.images"
        try:
            (source,) = self.info["images"].values()
            if len(source["file"]) > 255:
                raise ValueError("no file has so long a name")
            pixels = _load(self.folder / source["file"])[source["array"]][source["rows"]]
            if pixels.ndim != 4:
                raise ValueError(f"they have shape {pixels.shape}")
        except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
            if isinstance(error, InputError):  # the file of arrays, by its own name
                raise
            raise InputError(f"{where} does not name a file, an array in it and its rows ({shown(error)}).") from None
        return pixels.transpose(0, 2, 3, 1)

    def info_rows(self) -> dict[str, Any]:
        """The facts of `info` that are compared, under names such as "info.train.input_embeds_indices"."""
        return dict(_info_rows(self.info, "info"))


@dataclasses.dataclass(frozen=True, eq=False)
class Recording:
    """A folder with a checkpoint, its vision tower and cases.

    Attributes:
        path: the folder.
        round_ids: token ids that open a user's turn.
        names: the cases, in order; files that hold only inputs are none.
        dtype: in which the official code computed.
    """

    path: Path
    round_ids: tuple[int, ...]
    names: tuple[str, ...]
    dtype: str = "float32"

    @property
    def checkpoint(self) -> Path:
        return self.path / "checkpoint"

    @property
    def vision_tower(self) -> Path | None:
        """What the checkpoint's `mm_vision_tower` names, relative to this folder, else `vision_tower` beside it."""
        name = read_object(self.checkpoint / "config.json").get("mm_vision_tower")
        found = [self.path / folder for folder in (name, "vision_tower") if isinstance(folder, str) and folder]
        return next((path for path in found if path.is_dir()), None)

    def case(self, name: str) -> Case:
        """Raises InputError for files that cannot be read or that contradict each other."""
        folder = self.path / "cases"
        file = folder / f"{name}.json"
        described = read_object(file)
        about, notes = _arrays(file, described), described.get("notes", [])
        if not isinstance(notes, list):
            raise wrong(file, "notes", "a list", notes)
        effective = described.get("effective_sparse_config")
        if effective is not None and not isinstance(effective, dict):
            raise wrong(file, "effective_sparse_config", "an object or null", effective)
        arrays = _load(folder / f"{name}.npz")
        roles = {key: entry.get("role") for key, entry in about.items()}
        outputs = [key for key, role in roles.items() if role == "output"]
        if missing := [key for key in outputs if key not in arrays]:
            raise InputError(f"{folder / name}.npz lacks the arrays {', '.join(missing)} that its JSON describes.")
        return Case(
            name=name,
            folder=folder,
            summary=described.get("summary", ""),
            notes=tuple(notes),
            info=_object(file, described, "info"),
            sparse_config=effective,
            inputs={key: value for key, value in arrays.items() if key not in outputs},
            outputs={key: arrays[key] for key in outputs},
            descriptions={key: entry.get("description", "") for key, entry in about.items()},
        )

    def choose(self, wanted: list[str]) -> tuple[str, ...]:
        """The cases asked for, by name or by the number in front of it; none named means all.

        Raises:
            InputError: a name that is not there, with the nearest one.
        """
        chosen = []
        for name in wanted:
            found = [known for known in self.names if name in (known, known.split("_")[0])]
            if len(found) != 1:
                near = difflib.get_close_matches(name, self.names, 1, 0.0)
                hint = f"did you mean {near[0]}?" if near else "it holds none."
                raise InputError(f"{self.path} holds no case {name!r}; {hint}")
            chosen += [found[0]] if found[0] not in chosen else []
        return tuple(chosen) or self.names


def read_recording(path: Path) -> Recording:
    """Opens a folder such as the published goldens.

    Raises:
        InputError: no such folder, or one without manifest.json, checkpoint or cases, or half a case.
    """
    if not path.is_dir():
        raise InputError(f"{path} is no folder; --cases wants one with manifest.json, checkpoint and cases.")
    manifest = read_object(path / "manifest.json")
    for name in ("checkpoint", "cases"):
        if not (path / name).is_dir():
            raise InputError(f"{path} has no folder {name}; --cases wants manifest.json, checkpoint and cases.")
    marker = _object(path / "manifest.json", manifest, "special_text").get("USER:")
    if not isinstance(marker, list) or not marker or not all(map(is_whole, marker)):
        raise InputError(f"{path / 'manifest.json'}: special_text must give the token ids of 'USER:'.")
    dtype = manifest.get("dtype", "float32")
    if not isinstance(dtype, str) or dtype not in LOGITS:
        raise InputError(f"{path / 'manifest.json'}: dtype must be one of {', '.join(LOGITS)}, not {shown(dtype)}.")
    names = tuple(_case_names(path / "cases"))
    if not names:  # comparing nothing would find everything in order
        raise InputError(f"{path / 'cases'} holds no case: no JSON file there describes an output; copy it whole.")
    return Recording(path, tuple(marker), names, dtype)


def _case_names(folder: Path) -> Iterator[str]:
    for file in sorted(folder.glob("*.npz")):
        if not file.with_suffix(".json").is_file():
            raise InputError(f"{file} has no {file.stem}.json beside it that says what it holds; copy both files.")
    for file in sorted(folder.glob("*.json")):
        described = _arrays(file, read_object(file))
        roles = {array: entry.get("role") for array, entry in described.items()}
        if strange := [array for array, role in roles.items() if role not in ("input", "output")]:
            # Taken for no output, it would not be compared.
            raise InputError(
                f"{file}: the role of {strange[0]} must be input or output, not {shown(roles[strange[0]])}."
            )
        if "output" in roles.values():
            yield file.stem


def _info_rows(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if not isinstance(value, Mapping):
        return
    for key, item in value.items():
        if key.startswith(_INFO_ROWS):
            yield f"{path}.{key}", item
        else:
            yield from _info_rows(item, f"{path}.{key}")


def _load(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path) as file:
            return dict(file)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as an .npz file: {error}.") from None


def _object(path: Path, described: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """What a recording says under a key, in an object; nothing where it does not say it."""
    found = described.get(key, {})
    if not isinstance(found, dict):
        raise wrong(path, key, "an object", found)
    return found


def _arrays(path: Path, described: Mapping[str, Any]) -> Mapping[str, Mapping[str, Any]]:
    """What is said about each array."""
    arrays = _object(path, described, "arrays")
    return {name: _object(path, arrays, name) for name in arrays}
