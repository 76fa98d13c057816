"""A PyTorch checkpoint's JSON files and our `ModelConfig`, both ways.

Sources read: the official Dynamic-LLaVA and LLaVA-1.5 (one flat `config.json`; the tower's own beside it) and
Hugging Face's llava-hf (`text_config`, `vision_config`). Written: the official form.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from dynllava_jax.config.decoder import DecoderConfig
from dynllava_jax.config.hf_decoder import decoder_from_hf, decoder_to_hf
from dynllava_jax.config.hf_projector import projector_from_hf, projector_to_hf
from dynllava_jax.config.hf_sparse import sparsity_from_hf, sparsity_to_hf
from dynllava_jax.config.hf_vision import Aspect, image_prep_from_hf, vision_from_hf
from dynllava_jax.config.model import ModelConfig, TextPrep
from dynllava_jax.config.source import Source
from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.config.vision import MlpProjector, TokenPackerProjector
from dynllava_jax.errors import InputError, shown

Json = Mapping[str, Any]

OFFICIAL_MODEL_TYPES = ("llava_llama", "dynamic_llava_llama", "llava", "llava_mistral")

BARE_MODEL_TYPES = ("llama", "mistral")
"""Language models that a LLaVA can be made of."""

LLAVA_1_5: Json = {
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_layer": -2,
    "mm_vision_select_feature": "patch",
    "image_aspect_ratio": "pad",
}
"""What LLaVA-1.5 adds to the config of its language model."""

_KEYS = {
    "bos_id": "bos_token_id",
    "eos_id": "eos_token_id",
    "pad_id": "pad_token_id",
    "max_length": "tokenizer_model_max_length (or the tokenizer's model_max_length)",
    "crop": "the preprocessor's crop_size",
}
_UNLIMITED = 1e6
"""transformers writes 10^30 as `model_max_length` where a tokenizer knows no limit."""


@dataclasses.dataclass(frozen=True)
class HfFiles:
    """The parsed JSON files of one checkpoint, each with the name that errors give it."""

    config: Source
    vision: Source | None = None
    preprocessor: Source | None = None
    tokenizer: Source | None = None


def is_llava_hf(config: Json) -> bool:
    """Nested configs are Hugging Face's own LLaVA; the official code keeps one flat object."""
    return "text_config" in config or "vision_config" in config


def from_hf(
    config: Json,
    vision: Json | None = None,
    preprocessor: Json | None = None,
    tokenizer: Json | None = None,
    *,
    template: str = "vicuna_v1",
    round_ids: tuple[int, ...] | None = None,
    has_head: bool = True,
    file: str = "config.json",
) -> ModelConfig:
    """Translates a checkpoint's JSON files.

    Args:
        config: `config.json` of the language model.
        vision: `config.json` of the tower (official layout only; a whole CLIPModel's will do).
        preprocessor: `preprocessor_config.json`.
        tokenizer: `tokenizer_config.json`.
        template: the conversation template, which no PyTorch checkpoint records.
        round_ids: ids of the marker that opens a user's turn; None keeps the default of `TextPrep`.
        has_head: whether the weights hold a head of their own; without it, either `tie_word_embeddings` of a llava-hf
            config may say that it is tied (versions of transformers differ).
        file: what errors call `config`.

    Raises:
        InputError: one sentence that names the file and the key that this package cannot express.
    """
    files = HfFiles(
        Source(config, file),
        None if vision is None else Source(vision, "the vision tower's config.json"),
        None if preprocessor is None else Source(preprocessor, "preprocessor_config.json"),
        None if tokenizer is None else Source(tokenizer, "tokenizer_config.json"),
    )
    return (
        _from_llava_hf(files, template, round_ids, has_head)
        if is_llava_hf(config)
        else _from_official(files, template, round_ids)
    )


def to_hf(config: ModelConfig, vision_tower: str = "openai/clip-vit-large-patch14-336") -> dict[str, Any]:
    """The official `config.json`; `vision_to_hf` and `image_prep_to_hf` give the tower's two files.

    Args:
        config: what to express.
        vision_tower: written as `mm_vision_tower`, from which the official code loads the tower.

    Raises:
        InputError: names what the official layout cannot express.
    """
    return {
        "architectures": ["DynamicLlavaLlamaForCausalLM"],
        "model_type": "dynamic_llava_llama",
        **decoder_to_hf(config.decoder),
        **projector_to_hf(config.projector, config.vision),
        "mm_hidden_size": config.vision.hidden_size,
        "mm_vision_tower": vision_tower,
        "mm_vision_select_layer": config.vision.select_layer,
        "mm_vision_select_feature": config.vision.select_feature,
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": False,
        "mm_patch_merge_type": "flat",
        "use_mm_proj": True,
        "image_aspect_ratio": "pad" if config.image_prep.aspect == "pad" else "square",
        "tokenizer_model_max_length": config.text_prep.max_length,
        "tokenizer_padding_side": "right",
        "bos_token_id": config.text_prep.bos_id,
        "eos_token_id": config.text_prep.eos_id,
        "pad_token_id": config.text_prep.pad_id,
        "sparse_config": sparsity_to_hf(config.sparsity),
    }


def _from_official(files: HfFiles, template: str, round_ids: tuple[int, ...] | None) -> ModelConfig:
    source = files.config
    model_type = source.get("model_type")
    if model_type not in OFFICIAL_MODEL_TYPES:
        raise InputError(
            f"{source.file}: model_type {shown(model_type)} is not supported; use one of "
            f"{', '.join(OFFICIAL_MODEL_TYPES)}."
        )
    source.only("mm_use_im_start_end", False, "no tokens are put around an image")
    source.only("s2", False, "the tower sees one scale")
    if files.vision is None:
        raise InputError(f"{source.file} leaves the vision tower to another config.json, which was not given.")
    aspects: dict[Any, Aspect] = {"pad": "pad", "square": "crop", "anyres": "pad"}
    aspect = source.choose("image_aspect_ratio", "square", aspects)
    features = source.choose("mm_vision_select_feature", "patch", {"patch": "patch", "cls_patch": "cls_patch"})
    vision = vision_from_hf(files.vision, source.get("mm_vision_select_layer", -2), features)
    projector = projector_from_hf(source)
    if not isinstance(projector, TokenPackerProjector):
        source.only("mm_hidden_size", vision.hidden_size, "it must be the width of the tower that was given")
    decoder = decoder_from_hf(source)
    sparse = source.nested("sparse_config") if source.get("sparse_config") is not None else None
    image_prep = image_prep_from_hf(files.preprocessor, vision.image_size, aspect)
    with source.named(**_KEYS):
        return ModelConfig(
            vision=vision,
            projector=projector,
            decoder=decoder,
            sparsity=_below(sparsity_from_hf(sparse), decoder, sparse is not None),
            image_prep=image_prep,
            text_prep=_text_prep(files, source, decoder, template, round_ids),
        )


def _from_llava_hf(files: HfFiles, template: str, round_ids: tuple[int, ...] | None, has_head: bool) -> ModelConfig:
    source = files.config
    source.choose("model_type", "llava", {"llava": None, "llava_next": None})
    source.only("projector_hidden_act", "gelu", "the projector's activation is the exact GELU")
    source.only("multimodal_projector_bias", True, "the projector has biases")
    text = source.nested("text_config")
    text.choose("model_type", "llama", {"llama": None, "mistral": None})
    inner = text.get("tie_word_embeddings", False)
    tied = source.get("tie_word_embeddings", inner) or (inner and not has_head)
    decoder = decoder_from_hf(text, tied)
    # LlavaConfig without a vision_config means CLIP-L/14 at 336 pixels; with one, CLIPVisionConfig's own defaults.
    tower = source.nested("vision_config")
    if source.get("vision_config") is None:
        tower = Source(_CLIP_LARGE, tower.file)
    features = source.choose("vision_feature_select_strategy", "default", {"default": "patch", "full": "cls_patch"})
    vision = vision_from_hf(tower, source.get("vision_feature_layer", -2), features)
    whole = source.get("model_type") == "llava_next"
    padded = files.preprocessor is not None and files.preprocessor.flag("do_pad", False)
    aspect: Aspect = "pad" if whole or padded else "crop"
    image_prep = image_prep_from_hf(files.preprocessor, vision.image_size, aspect)
    with source.named(**_KEYS):
        return ModelConfig(
            vision=vision,
            projector=MlpProjector(depth=2),
            decoder=decoder,
            sparsity=_below(sparsity_from_hf(None), decoder, False),
            image_prep=image_prep,
            text_prep=_text_prep(files, text, decoder, template, round_ids),
        )


_CLIP_LARGE = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}


def _below(sparsity: SparsityConfig, decoder: DecoderConfig, given: bool) -> SparsityConfig:
    """A base LLaVA says nothing of a sparse layer, so a shallow one lowers the default instead of failing."""
    if given or sparsity.sparse_layer < decoder.num_layers:
        return sparsity
    return dataclasses.replace(sparsity, sparse_layer=max(1, decoder.num_layers - 1))


def _text_prep(
    files: HfFiles, text: Source, decoder: DecoderConfig, template: str, round_ids: tuple[int, ...] | None
) -> TextPrep:
    limit = files.tokenizer.real("model_max_length", _UNLIMITED) if files.tokenizer else _UNLIMITED
    limit = files.config.real("tokenizer_model_max_length", limit)
    if not (limit >= _UNLIMITED or limit.is_integer()):
        raise InputError(f"{files.config.file}: tokenizer_model_max_length must be a whole number, not {limit}.")
    ids = {}
    for name, default in (("bos", 1), ("eos", 2), ("pad", None)):
        ids[name] = files.config.get(f"{name}_token_id", text.get(f"{name}_token_id", default))
        if (not isinstance(ids[name], int) or isinstance(ids[name], bool)) and not (
            name == "pad" and ids[name] is None
        ):
            raise InputError(f"{text.file}: {name}_token_id must be one number, not {shown(ids[name])}.")
    return TextPrep(
        template=template,
        bos_id=ids["bos"],
        eos_id=ids["eos"],
        pad_id=ids["pad"],
        round_ids=TextPrep().round_ids if round_ids is None else round_ids,
        max_length=decoder.context if limit >= _UNLIMITED else int(limit),
    )
