"""Llama's `config.json` and our decoder config, both ways.

Defaults are those of transformers' `LlamaConfig` or `MistralConfig`, since files leave out what has the default value.
"""

from typing import Any

from dynllava_jax.config.decoder import (
    DecoderConfig,
    DynamicNtkScaling,
    LinearScaling,
    Llama3Scaling,
    RopeScaling,
)
from dynllava_jax.config.source import Source
from dynllava_jax.errors import InputError, shown

_MISTRAL = {
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 131072,
    "sliding_window": 4096,
}
"""Where `MistralConfig`'s defaults are not `LlamaConfig`'s; a null is a value of its own."""

_KEYS = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "norm_eps": "rms_norm_eps",
    "max_positions": "max_position_embeddings",
    "tie_embeddings": "tie_word_embeddings",
}


def decoder_from_hf(source: Source, tie_embeddings: bool | None = None) -> DecoderConfig:
    """Reads the keys of `LlamaConfig`, in transformers 4's spelling or 5's.

    Args:
        source: the whole config of an official checkpoint, or the `text_config` of a llava-hf one.
        tie_embeddings: overrules the source's own `tie_word_embeddings` (llava-hf keeps it one level up).
    """
    if source.get("model_type") in ("mistral", "llava_mistral"):
        source = Source(_MISTRAL | dict(source.values), source.file)
    source.only("hidden_act", "silu", "the decoder is a Llama")
    source.only("mlp_bias", False, "the decoder's MLP has no bias")
    heads = source.get("num_attention_heads", 32)
    hidden = source.get("hidden_size", 4096)
    scaling, theta = _rope_from_hf(source)
    tied = source.get("tie_word_embeddings", False) if tie_embeddings is None else tie_embeddings
    with source.named(**_KEYS):
        config = DecoderConfig(
            vocab_size=source.get("vocab_size", 32000),
            hidden_size=hidden,
            intermediate_size=source.get("intermediate_size", 11008),
            num_layers=source.get("num_hidden_layers", 32),
            num_heads=heads,
            num_kv_heads=source.get("num_key_value_heads", heads),
            head_dim=_head_dim(source, hidden, heads) if source.get("head_dim") is None else source.get("head_dim"),
            norm_eps=source.real("rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            max_positions=source.get("max_position_embeddings", 2048),
            attention_bias=source.get("attention_bias", False),
            tie_embeddings=tied,
            initializer_range=source.real("initializer_range", 0.02),
        )
    window = source.get("sliding_window")
    if window is not None and not (isinstance(window, int) and window >= config.context):
        raise InputError(
            f"{source.file}: sliding_window {shown(window)} is not supported in a context of {config.context} tokens "
            "(every token attends to all before it); only null is, which a Mistral must say, or a shorter "
            "max_position_embeddings."
        )
    return config


def decoder_to_hf(config: DecoderConfig) -> dict[str, Any]:
    """The keys of transformers 4.37's `LlamaConfig`, which the official code runs on.

    Raises:
        InputError: names what that version cannot express.
    """
    if config.head_dim * config.num_heads != config.hidden_size:
        raise InputError(
            f"The official layout cannot express head_dim {config.head_dim}: it takes hidden_size / num_heads = "
            f"{config.hidden_size / config.num_heads:g}."
        )
    return {
        "hidden_act": "silu",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": _rope_to_hf(config.rope_scaling),
        "max_position_embeddings": config.max_positions,
        "attention_bias": config.attention_bias,
        "tie_word_embeddings": config.tie_embeddings,
        "initializer_range": config.initializer_range,
    }


def _head_dim(source: Source, hidden: Any, heads: Any) -> int:
    if not isinstance(hidden, int) or not isinstance(heads, int) or heads < 1 or hidden % heads:
        raise InputError(
            f"{source.file}: num_attention_heads {shown(heads)} does not divide hidden_size {shown(hidden)}."
        )
    return hidden // heads


def _rope_from_hf(source: Source) -> tuple[RopeScaling | None, float]:
    """`rope_scaling` (transformers 4, with `type` or `rope_type`), else `rope_parameters` (5, theta inside)."""
    rope = source.nested("rope_parameters" if source.get("rope_scaling") in (None, {}) else "rope_scaling")
    theta = rope.real("rope_theta", source.real("rope_theta", 10000.0))
    rope.only("partial_rotary_factor", 1.0, "every channel is rotated")
    kind = rope.get("rope_type", rope.get("type"))
    if kind is None and rope.get("factor") is not None:
        raise InputError(f"{rope.file} has a factor but no rope_type; say which one it is for.")
    with rope.named(original_max_position="original_max_position_embeddings"):
        if kind in (None, "default"):
            return None, theta
        if kind == "linear":
            return LinearScaling(rope.real("factor")), theta
        if kind == "dynamic":
            return DynamicNtkScaling(rope.real("factor")), theta
        if kind == "llama3":
            low, high = rope.real("low_freq_factor"), rope.real("high_freq_factor")
            length = rope.need("original_max_position_embeddings")
            source.only("original_max_position_embeddings", length, f"{rope.file} says otherwise")
            return Llama3Scaling(rope.real("factor"), low, high, length), theta
    raise InputError(f"{rope.file}: rope_type {shown(kind)} is not supported; use default, linear, dynamic or llama3.")


def _rope_to_hf(scaling: RopeScaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    if isinstance(scaling, Llama3Scaling):
        raise InputError("The official layout cannot express Llama 3's RoPE scaling: transformers 4.37 lacks it.")
    return {"type": "linear" if isinstance(scaling, LinearScaling) else "dynamic", "factor": scaling.factor}
