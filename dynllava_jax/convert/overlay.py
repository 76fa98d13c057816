"""Checkpoints that hold a part of a model: LoRA adapters or a projector, laid over the weights of their base.

LLaVA's LoRA training writes `adapter_model` (peft), `non_lora_trainables.bin` and a config.json; its first stage writes
`mm_projector.bin` and a config.json. Both name a base, which is given as a folder.
"""

import dataclasses
import math
import re
from typing import Any

import numpy as np

from dynllava_jax.checkpoint.paths import AnyPath
from dynllava_jax.config.json_file import is_whole
from dynllava_jax.config.source import Source
from dynllava_jax.convert.read_torch import TensorInfo, TorchWeights, read_json, stamp_of
from dynllava_jax.errors import InputError, shown, some

ADAPTER = ("adapter_model.safetensors", "adapter_model.bin")
TRAINED = ("non_lora_trainables.bin", "non_lora_trainables.safetensors")
PROJECTOR = ("mm_projector.bin", "mm_projector.safetensors")
_CONFIG = "adapter_config.json"

_LOW_RANK = re.compile(r"(.*)\.lora_(A|B)(?:\.default)?\.weight")
_ADAPTED = re.compile(r"(.*)\.base_layer\.(weight|bias)")
"""What was adapted itself: peft saves an adapted head beside its adapters, LLaVA a projector that was trained too."""

_PLAIN: dict[str, Any] = {
    "peft_type": "LORA",
    "bias": "none",
    "fan_in_fan_out": False,
    "use_dora": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layer_replication": None,
    "alora_invocation_tokens": None,
    "arrow_config": None,
    "kasa_config": None,
    "monteclora_config": None,
    "use_bdlora": None,
    "velora_config": None,
}
"""What an adapter_config.json may say besides rank and alpha; these are peft's defaults."""

_MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to begin, peft's `init_lora_weights`, that take out of the base what they put into the adapters."""


@dataclasses.dataclass(frozen=True)
class _Pair:
    """`a [rank, in]` and `b [out, rank]` by name in the adapter's file; the product is scaled."""

    a: str
    b: str
    scale: float


def is_overlay(folder: AnyPath) -> bool:
    return any((folder / name).is_file() for name in (*ADAPTER, *TRAINED, *PROJECTOR))


class OverlaidWeights(TorchWeights):
    """The base's tensors, replaced or changed by what `folder` holds.

    Raises:
        InputError: tensors that the base does not have, adapters of another shape or of an unknown kind.
    """

    def __init__(self, folder: AnyPath, base: TorchWeights):
        self.folder = folder
        self._base = base
        self.infos = dict(base.infos)
        self._over: dict[str, tuple[TorchWeights, str]] = {}
        self._pairs: dict[str, _Pair] = {}
        self._adapter: TorchWeights | None = None
        self._parts: list[TorchWeights] = []
        for names in (TRAINED, PROJECTOR):
            if found := next((name for name in names if (folder / name).is_file()), None):
                self._replace(TorchWeights(folder, (found,)))
        if found := next((name for name in ADAPTER if (folder / name).is_file()), None):
            self._adapter = TorchWeights(folder, (found,))
            self._parts.append(self._adapter)
            self._pairs = self._paired(self._adapter, _scale(folder))

    def read(self, name: str) -> np.ndarray:
        if name in self._over:
            weights, own = self._over[name]
            tensor = weights.read(own)
        else:
            tensor = self._base.read(name)
        if name not in self._pairs:
            return tensor
        assert self._adapter is not None
        pair = self._pairs[name]
        a, b = (self._adapter.read(part).astype(np.float32) for part in (pair.a, pair.b))
        return (tensor.astype(np.float32) + np.float32(pair.scale) * (b @ a)).astype(tensor.dtype)

    def stamp(self) -> list[tuple[str, int, int]]:
        scale = [] if self._adapter is None else [stamp_of(self.folder, _CONFIG)]
        return [*self._base.stamp(), *(line for part in self._parts for line in part.stamp()), *scale]

    def _replace(self, part: TorchWeights) -> None:
        self._parts.append(part)
        for name, info in part.infos.items():
            match = _ADAPTED.fullmatch(name)
            own = plain_name(f"{match[1]}.{match[2]}" if match else name)
            self._over[own] = (part, name)
            self.infos[own] = info

    def _paired(self, adapter: TorchWeights, scale: tuple[float, int]) -> dict[str, _Pair]:
        halves: dict[str, dict[str, str]] = {}
        problems: list[str] = []
        for name in adapter.infos:
            if match := _LOW_RANK.fullmatch(name):
                halves.setdefault(plain_name(f"{match[1]}.weight"), {})[match[2]] = name
            elif match := _ADAPTED.fullmatch(name):
                own = plain_name(f"{match[1]}.{match[2]}")
                self._over[own], self.infos[own] = (adapter, name), adapter.infos[name]
            else:
                problems.append(f"{name} is no low-rank matrix")
        factor, rank = scale
        pairs: dict[str, _Pair] = {}
        for target, found in halves.items():
            info: TensorInfo | None = self.infos.get(target)
            if info is None or len(found) != 2:
                problems.append(f"{target} is not in the base" if info is None else f"{target} has one half only")
                continue
            a, b = adapter.infos[found["A"]].shape, adapter.infos[found["B"]].shape
            if a != (rank, info.shape[-1]) or b != (info.shape[0], rank) or len(info.shape) != 2:
                problems.append(f"{target} {list(info.shape)} does not fit adapters {list(a)} and {list(b)}")
            pairs[target] = _Pair(found["A"], found["B"], factor)
        if problems:
            raise InputError(f"{self.folder} does not fit its base: {some(problems, '; ')}.")
        return pairs


def plain_name(name: str) -> str:
    """A tensor's name without what peft puts in front."""
    name = name.removeprefix("base_model.")
    return name.removeprefix("model.") if name.startswith(("model.model.", "model.lm_head.")) else name


def _scale(folder: AnyPath) -> tuple[float, int]:
    """What the product of the two matrices is multiplied with, and their rank."""
    file = folder / _CONFIG
    if not file.is_file():
        raise InputError(f"{file} is missing; without it the adapters' scale is not known.")
    config = read_json(file)
    for key, default in _PLAIN.items():
        if (config.get(key) or default) != default:
            raise InputError(f"{file}: {key} {shown(config[key])} is not supported; only {default!r} is.")
    if str(config.get("init_lora_weights")).startswith(_MOVES_BASE):
        raise InputError(
            f"{file}: init_lora_weights {shown(config['init_lora_weights'])} has changed the base's weights too, which "
            "are not there; save the adapters as ordinary ones (peft: path_initial_model_for_weight_conversion)."
        )
    source = Source(config, str(file))
    rank, alpha = source.need("r"), source.real("lora_alpha")
    if not is_whole(rank, 1) or not 0 < alpha < math.inf:
        raise InputError(
            f"{file} must give r and lora_alpha as numbers above 0, r a whole one, not {shown(rank)} and {alpha}."
        )
    return (alpha / rank**0.5 if source.flag("use_rslora", False) else alpha / rank), rank
