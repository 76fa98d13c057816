"""CLIP's `config.json` and `preprocessor_config.json` and our own, both ways."""

from typing import Any, Literal

from dynllava_jax.config.model import ImagePrep
from dynllava_jax.config.source import Source
from dynllava_jax.config.vision import VisionConfig
from dynllava_jax.errors import InputError, shown

Aspect = Literal["pad", "crop"]

_KEYS = {
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "norm_eps": "layer_norm_eps",
    "activation": "hidden_act",
    "select_layer": "the checkpoint's vision_feature_layer or mm_vision_select_layer",
}
_PREPARATION = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")


def vision_from_hf(source: Source, select_layer: Any, select_feature: Any) -> VisionConfig:
    """Reads a `CLIPVisionConfig`, flat or as the `vision_config` of a whole `CLIPModel`.

    Defaults are those of transformers' `CLIPVisionConfig`.
    """
    if source.get("vision_config"):
        source = source.nested("vision_config")
    source.choose("model_type", "clip_vision_model", {"clip_vision_model": None, "clip": None})
    source.only("num_channels", 3, "pictures are RGB")
    if not isinstance(select_layer, int) or isinstance(select_layer, bool):
        raise InputError(
            f"{source.file}: features of several tower layers {shown(select_layer)} (vision_feature_layer, "
            "mm_vision_select_layer) are not supported; give one number."
        )
    with source.named(**_KEYS):
        return VisionConfig(
            hidden_size=source.get("hidden_size", 768),
            intermediate_size=source.get("intermediate_size", 3072),
            num_layers=source.get("num_hidden_layers", 12),
            num_heads=source.get("num_attention_heads", 12),
            image_size=source.get("image_size", 224),
            patch_size=source.get("patch_size", 32),
            norm_eps=source.real("layer_norm_eps", 1e-5),
            activation=source.get("hidden_act", "quick_gelu"),
            select_layer=select_layer,
            select_feature=select_feature,
        )


def vision_to_hf(config: VisionConfig) -> dict[str, Any]:
    """The `config.json` of a `CLIPVisionModel`."""
    return {
        "architectures": ["CLIPVisionModel"],
        "model_type": "clip_vision_model",
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_channels": 3,
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "layer_norm_eps": config.norm_eps,
        "hidden_act": config.activation,
    }


def image_prep_from_hf(source: Source | None, image_size: int, aspect: Aspect) -> ImagePrep:
    """Reads a `CLIPImageProcessor` config; without one, CLIP's own values at the tower's image size."""
    if source is None:
        return ImagePrep(resize=image_size, crop=image_size, aspect=aspect)
    for step in _PREPARATION:
        source.only(step, True, "CLIP's preparation has this step")
    source.only("resample", 3, "pictures are resized bicubically")
    if not abs(source.real("rescale_factor", 1 / 255) * 255 - 1) <= 1e-6:
        raise InputError(f"{source.file}: rescale_factor must be 1/255, not {shown(source.get('rescale_factor'))}.")
    default = ImagePrep()
    with source.named(resize="size", crop="crop_size", mean="image_mean", std="image_std"):
        return ImagePrep(
            resize=_side(source, "size", image_size),
            crop=_side(source, "crop_size", image_size),
            aspect=aspect,
            mean=source.reals("image_mean", default.mean),
            std=source.reals("image_std", default.std),
        )


def image_prep_to_hf(config: ImagePrep) -> dict[str, Any]:
    """The `preprocessor_config.json` of a `CLIPImageProcessor` (the aspect stands in the model's config)."""
    return {
        "image_processor_type": "CLIPImageProcessor",
        **dict.fromkeys((*_PREPARATION, "do_convert_rgb"), True),
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": config.resize},
        "crop_size": {"height": config.crop, "width": config.crop},
        "image_mean": list(config.mean),
        "image_std": list(config.std),
    }


def _side(source: Source, key: str, default: int) -> int:
    """A side in pixels, written as a number (old files), a shortest edge, or a square."""
    value = source.get(key, default)
    if isinstance(value, dict):
        sides = [value[name] for name in ("shortest_edge", "height", "width") if value.get(name) is not None]
        if not sides or any(side != sides[0] for side in sides):
            raise InputError(f"{source.file}: {key} {shown(value)} is not a square.")
        return sides[0]
    return value
