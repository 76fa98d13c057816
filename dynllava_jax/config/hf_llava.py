"""Our `ModelConfig` as the files of transformers' own LLaVA (`LlavaForConditionalGeneration`, "llava-hf")."""

import dataclasses
from typing import Any

from dynllava_jax.config.decoder import DecoderConfig, LinearScaling, Llama3Scaling, RopeScaling
from dynllava_jax.config.hf_vision import image_prep_to_hf, vision_to_hf
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.vision import MlpProjector
from dynllava_jax.errors import InputError

IMAGE_TOKEN = "<image>"


def to_llava_hf(config: ModelConfig, *, image_token: int, vocab_size: int) -> dict[str, Any]:
    """The `config.json`.

    Args:
        config: what to express.
        image_token: id of the token that stands for an image feature.
        vocab_size: rows of the embedding, which has one for that token.

    Raises:
        InputError: names what that format has no place for.
    """
    check_expressible(config)
    strategy = "default" if config.vision.select_feature == "patch" else "full"
    # transformers takes a 0 for "not said" and fails; counted from the end it knows the embedding's output.
    layer = config.vision.select_layer or -config.vision.num_layers - 1
    return {
        "architectures": ["LlavaForConditionalGeneration"],
        "model_type": "llava",
        "image_token_index": image_token,
        "image_seq_length": config.vision.num_features,
        "projector_hidden_act": "gelu",
        "multimodal_projector_bias": True,
        "vision_feature_layer": layer,
        "vision_feature_select_strategy": strategy,
        "tie_word_embeddings": config.decoder.tie_embeddings,
        "pad_token_id": config.text_prep.pad_id,
        "text_config": {
            **_text_config(config.decoder),
            "vocab_size": vocab_size,
            "bos_token_id": config.text_prep.bos_id,
            "eos_token_id": config.text_prep.eos_id,
            "pad_token_id": config.text_prep.pad_id,
        },
        "vision_config": vision_to_hf(config.vision),
    }


def check_expressible(config: ModelConfig) -> None:
    """Raises InputError that names the field which llava-hf has no place for."""
    for place in ("tower", "embed", "image", "output", "instruct"):
        if (selector := getattr(config.sparsity, f"{place}_selector")) is not None:
            raise InputError(
                f"llava-hf cannot express {place}_selector {selector!r}: it drops no tokens; take --layout official, "
                "or a dense model (to-torch has --without-predictors for it)."
            )
    if config.decoder.hidden_size % config.decoder.num_heads:
        raise InputError(
            f"llava-hf cannot express {config.decoder.num_heads} decoder heads at hidden_size "
            f"{config.decoder.hidden_size}: transformers loads no Llama whose heads do not divide it."
        )
    if config.projector != MlpProjector(depth=2):
        raise InputError(
            f"llava-hf cannot express the projector {config.projector}; it has MlpProjector(depth=2) only, so take "
            "--layout official."
        )


def processor_files(config: ModelConfig) -> dict[str, dict[str, Any]]:
    """What `AutoProcessor` reads beside the tokenizer: file name -> content."""
    strategy = "default" if config.vision.select_feature == "patch" else "full"
    image = image_prep_to_hf(config.image_prep)
    image |= {"image_processor_type": "LlavaImageProcessor", "do_pad": config.image_prep.aspect == "pad"}
    return {
        "preprocessor_config.json": image | {"processor_class": "LlavaProcessor"},
        "processor_config.json": {
            "processor_class": "LlavaProcessor",
            "image_token": IMAGE_TOKEN,
            "num_additional_image_tokens": 1,
            "patch_size": config.vision.patch_size,
            "vision_feature_select_strategy": strategy,
        },
    }


def _text_config(config: DecoderConfig) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope(config.rope_scaling),
        "max_position_embeddings": config.max_positions,
        "attention_bias": config.attention_bias,
        "mlp_bias": False,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initializer_range,
    }


def _rope(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if isinstance(scaling, Llama3Scaling):
        values = dataclasses.asdict(scaling)
        length = values.pop("original_max_position")
        return {"rope_type": "llama3", **values, "original_max_position_embeddings": length}
    return {"rope_type": "linear" if isinstance(scaling, LinearScaling) else "dynamic", "factor": scaling.factor}
