"""The vision tower of a checkpoint: inside it, beside it, or given; and whether two of them are the same."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dynllava_jax.checkpoint.paths import AnyPath
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.vision import VisionConfig
from dynllava_jax.convert.read_torch import TorchWeights, read_json
from dynllava_jax.convert.table import TOWER_ALONE, tower_rules
from dynllava_jax.errors import InputError

FOLDER = "vision_tower"
"""Where `convert to-torch` puts a tower that stands apart."""

_MARK = "embeddings.class_embedding"

_CLIP_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
}
KNOWN_CONFIGS: dict[str, dict[str, Any]] = {
    "openai/clip-vit-large-patch14-336": {**_CLIP_LARGE, "image_size": 336},
    "openai/clip-vit-large-patch14": {**_CLIP_LARGE, "image_size": 224},
}
"""Towers inside an official checkpoint come without their config; of these two it is known."""


@dataclasses.dataclass(frozen=True)
class Tower:
    """Tensors of a tower: `weights` under `prefix`. `folder` is None when it lies inside the checkpoint.

    `described` is the folder of its small files, where one is known.
    """

    weights: TorchWeights
    prefix: str
    folder: AnyPath | None = None
    described: AnyPath | None = None

    def json(self, name: str) -> dict[str, Any] | None:
        """A JSON file that describes the tower."""
        if self.described is None or not (self.described / name).is_file():
            return None
        return read_json(self.described / name)


def inside(weights: TorchWeights, prefixes: tuple[str, ...]) -> Tower | None:
    """The tower within a checkpoint, under the first of the prefixes that holds one."""
    prefix = next((prefix for prefix in prefixes if prefix + _MARK in weights.infos), None)
    return None if prefix is None else Tower(weights, prefix)


def open_tower(folder: AnyPath) -> Tower:
    """A CLIPVisionModel or a whole CLIPModel.

    Raises:
        InputError: no such folder, no weights, no config.json, or weights without a tower.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; --vision-tower takes a CLIPVisionModel or CLIPModel folder.")
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder} has no config.json; --vision-tower takes a CLIPVisionModel or CLIPModel folder.")
    found = inside(TorchWeights(folder), TOWER_ALONE)
    if found is None:
        raise InputError(f"{folder} holds no CLIP vision tower: none of its tensors is called {_MARK}.")
    return dataclasses.replace(found, folder=folder, described=folder)


def beside(src: AnyPath, config: Mapping[str, Any]) -> AnyPath | None:
    """The folder that `mm_vision_tower` names, when it is a local one (relative to SRC's parent, or to SRC).

    Otherwise the one inside SRC in which exports keep it.
    """
    name = config.get("mm_vision_tower") or config.get("vision_tower")
    folders: list[AnyPath] = [src / FOLDER]
    if isinstance(name, str) and name:
        folders = [Path(name)] if Path(name).is_absolute() else [_whole(src).parent / name, src / name, *folders]
    return next((folder for folder in folders if _is_there(folder / "config.json")), None)


def _is_there(file: AnyPath) -> bool:
    try:
        return file.is_file()
    except OSError:  # a name longer than any file's
        return False


def _whole(src: AnyPath) -> AnyPath:
    return src.resolve() if isinstance(src, Path) else src


def differing(own: Tower, given: Tower, config: ModelConfig) -> list[str]:
    """Leaves in which two towers differ, compared bit by bit in the dtype of `own`, one at a time."""
    names = {rule.leaf: rule.source for rule in tower_rules(given.prefix, config)}
    different = []
    for rule in tower_rules(own.prefix, config):
        other = names[rule.leaf]
        if rule.source not in own.weights.infos or other not in given.weights.infos:
            different.append(rule.leaf)
            continue
        left, right = own.weights.read(rule.source), given.weights.read(other)
        with np.errstate(over="ignore"):  # what a half cannot hold is infinite, and different
            right = right.astype(left.dtype)
        if left.shape != right.shape or not _same_bits(left, right):
            different.append(rule.leaf)
    return different


def unlike(own: VisionConfig, given: VisionConfig) -> list[str]:
    """Where the configs of two towers differ, such as `activation (gelu inside, quick_gelu given)`."""
    pairs = {field.name: (getattr(own, field.name), getattr(given, field.name)) for field in dataclasses.fields(own)}
    return [f"{name} ({left} inside, {right} given)" for name, (left, right) in pairs.items() if left != right]


def _same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    """Unlike `==`, takes NaN for equal to itself."""
    return np.array_equal(_bits(left), _bits(right))


def _bits(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)
