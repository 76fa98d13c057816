"""What conversion starts from: a LLaVA, a language model alone, or a part of a model laid over its base."""

import dataclasses
from typing import Any

from dynllava_jax.checkpoint import store
from dynllava_jax.checkpoint.paths import AnyPath
from dynllava_jax.config.hf import BARE_MODEL_TYPES, LLAVA_1_5, is_llava_hf
from dynllava_jax.convert.overlay import OverlaidWeights, is_overlay
from dynllava_jax.convert.read_torch import TorchWeights, has_torch_weights, read_json
from dynllava_jax.convert.table import LAYOUTS, OFFICIAL, PREDICTOR, Layout
from dynllava_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class TorchSource:
    """A PyTorch checkpoint: its config, its tensors, and how they are named."""

    folder: AnyPath
    config: dict[str, Any]
    weights: TorchWeights
    layout: Layout
    bare: bool = False
    """A language model alone, whose projector has yet to be trained."""
    base: AnyPath | None = None
    """What a part of a model in `folder` is laid over."""

    def file(self, name: str) -> AnyPath:
        """One of the small files; that of the base where a part came without. It need not be there."""
        own = self.folder / name
        return own if self.base is None or own.is_file() else self.base / name

    @property
    def tokenizer(self) -> AnyPath | None:
        """The folder that has it, None if there is none: LLaVA saves no tokenizer with adapters or a projector."""
        folders = [self.folder] if self.base is None else [self.folder, self.base]
        return next(filter(has_tokenizer, folders), None)


def has_tokenizer(folder: AnyPath) -> bool:
    return any((folder / name).is_file() for name in ("tokenizer.model", "tokenizer.json"))


def open_torch(src: AnyPath, base: AnyPath | None, notes: list[str]) -> TorchSource:
    """Reads config.json and every header; notes tell what was decided.

    Raises:
        InputError: no LLaVA there, a part of one without its base, a damaged file.
    """
    if not src.is_dir():
        raise InputError(f"{src} is no folder; SRC is a downloaded checkpoint folder.")
    if store.is_checkpoint(src):
        raise InputError(f"{src} is a model checkpoint of dynllava_jax already; SRC is a PyTorch folder.")
    if not (src / "config.json").is_file():
        raise InputError(f"{src} has no config.json; SRC is a PyTorch checkpoint folder.")
    config, weights = read_json(src / "config.json"), _weights(src, base, notes)
    bare = config.get("model_type") in BARE_MODEL_TYPES
    if bare:
        notes.append(f"{src} is a language model alone: LLaVA-1.5's projector (mlp2x_gelu) is made for it")
        config = {**config, **LLAVA_1_5, "model_type": f"llava_{config['model_type']}"}
    if config.get("image_aspect_ratio") == "anyres" or config.get("model_type") == "llava_next":
        notes.append("trained with tiles (anyres), which are not built: a picture is seen whole, padded to a square")
    layouts = [layout for layout in LAYOUTS if f"{layout.decoder}embed_tokens.weight" in weights.infos]
    if not layouts:
        names = " or ".join(f"{layout.decoder}embed_tokens.weight" for layout in LAYOUTS)
        raise InputError(f"{src} holds no LLaVA: it has no tensor {names}.")
    if is_llava_hf(config) == (layouts[0] is OFFICIAL):
        kind = "llava-hf (text_config)" if is_llava_hf(config) else "official"
        raise InputError(f"{src}: config.json is of the {kind} kind, but the tensors' names are {layouts[0].name}'s.")
    return TorchSource(src, config, weights, layouts[0], bare, base)


def _weights(src: AnyPath, base: AnyPath | None, notes: list[str]) -> TorchWeights:
    if not is_overlay(src) or (has_torch_weights(src) and base is None):
        if base is not None:
            raise InputError(f"{src} holds neither LoRA adapters nor a projector alone, so --base has no meaning.")
        return TorchWeights(src)
    if base is None:
        name = read_json(src / "config.json").get("_name_or_path", "its base")
        raise InputError(f"{src} holds a part of a model only; give the folder of {name} with --base.")
    notes.append(f"laid over {base}")
    return OverlaidWeights(src, TorchWeights(base))


def is_base(source: TorchSource) -> bool:
    """Whether it is a LLaVA without predictors, by its config; its tensors must say the same."""
    if source.config.get("sparse_config") is not None:
        return False
    if found := [name for name in source.weights.infos if PREDICTOR.match(name)]:
        raise InputError(
            f"{source.folder / 'config.json'} has no sparse_config, but the weights hold predictors ({found[0]} and "
            f"{len(found) - 1} more); add the sparse_config that they were trained with."
        )
    return True
