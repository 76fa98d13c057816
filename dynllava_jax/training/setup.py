"""What a config settles before any device works: the model, its tokenizer and its template."""

import dataclasses
from typing import Any, NamedTuple

from dynllava_jax.checkpoint.paths import AnyPath, as_path
from dynllava_jax.checkpoint.source import Source, open_source
from dynllava_jax.config.json_codec import to_json
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.presets import get_preset
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.data.templates import Template, get_template
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.errors import InputError


class Subject(NamedTuple):
    """What is trained.

    Attributes:
        model: the model that comes out.
        tokenizer, template: how its conversations become ids.
        files: folder that the tokenizer was read from.
    """

    model: ModelConfig
    tokenizer: Tokenizer
    template: Template
    files: AnyPath


def settle(config: TrainConfig) -> Subject:
    """The model of a run, out of preset, checkpoint and what the config says otherwise.

    Shapes are the checkpoint's, and the preset, if one is named, must have the same. What is dropped is what
    `sparsity` says, else the preset, else the checkpoint. Template and aspect are the checkpoint's where the config
    does not name them.

    Raises:
        InputError: preset and checkpoint differ (all fields are listed), no tokenizer, samples longer than the context.
    """
    source = None if config.init.checkpoint is None else open_source(config.init.checkpoint)
    own = None if source is None else source.config
    preset = None if config.model is None else get_preset(config.model)
    if own is not None and preset is not None:
        _check_agree(config, own, preset)
    base = own or preset
    assert base is not None  # TrainConfig sees to it
    model = dataclasses.replace(
        base,
        sparsity=config.sparsity or (preset or base).sparsity,
        text_prep=dataclasses.replace(
            base.text_prep,
            template=get_template(config.template or base.text_prep.template).name,
            max_length=config.data.max_length,
        ),
        image_prep=dataclasses.replace(base.image_prep, aspect=config.image_aspect or base.image_prep.aspect),
    )
    if (length := config.data.max_length) > (context := model.decoder.context):
        raise InputError(f"data.max_length {length} exceeds the decoder's context of {context} tokens; lower it.")
    files = _files(config, source)
    tokenizer = Tokenizer.load(files)
    if tokenizer.vocab_size > model.decoder.vocab_size:
        raise InputError(
            f"The tokenizer in {files} has ids up to {tokenizer.vocab_size - 1}, the decoder an embedding of "
            f"{model.decoder.vocab_size}; give the model's own tokenizer."
        )
    return Subject(model, tokenizer, get_template(model.text_prep.template), files)


def preset_model(config: TrainConfig) -> ModelConfig:
    """The model that a config trains, as far as its preset says; no checkpoint is read.

    Raises:
        InputError: the config names no preset.
    """
    if config.model is None:
        raise InputError("model: the config names no preset, and no weights are read here; name one.")
    model = get_preset(config.model)
    return model if config.sparsity is None else dataclasses.replace(model, sparsity=config.sparsity)


def _check_agree(config: TrainConfig, own: ModelConfig, preset: ModelConfig) -> None:
    parts = ("vision", "projector", "decoder")
    wrong = [
        f"{name} {found!r}, the preset {wanted!r}"
        for name, found, wanted in differences(
            {part: to_json(own)[part] for part in parts}, {part: to_json(preset)[part] for part in parts}
        )
    ]
    if wrong:
        raise InputError(
            f"{config.init.checkpoint} is no {config.model}: it has {'; '.join(wrong)}. Name another preset in model, "
            "or None for the checkpoint's own."
        )


def differences(first: Any, second: Any, name: str = "") -> list[tuple[str, Any, Any]]:
    """(key, value, other value) of all leaves that differ between two nested dicts."""
    if isinstance(first, dict) and isinstance(second, dict):
        keys = dict.fromkeys([*first, *second])
        prefix = f"{name}." if name else ""
        return [each for key in keys for each in differences(first.get(key), second.get(key), f"{prefix}{key}")]
    return [] if first == second else [(name, first, second)]


def _files(config: TrainConfig, source: Source | None) -> AnyPath:
    if config.init.tokenizer is not None:
        return as_path(config.init.tokenizer)
    if source is None:
        raise InputError("A run without init.checkpoint needs init.tokenizer, a folder with the tokenizer's files.")
    return source.files
