"""The official `sparse_config` (train_sparse.py, dynamic_modeling_llama.py) and our sparsity config, both ways."""

from typing import Any

from dynllava_jax.config.source import Source
from dynllava_jax.config.sparsity import MlpPredictor, SparsityConfig, TransformerPredictor
from dynllava_jax.errors import InputError

_KEYS = {
    "image_keep_rate": "vision_keep_rate",
    "output_keep_rate": "output_text_keep_rate",
    "width": "d_model",
    "num_heads": "nhead",
    "mlp_width": "dim_feedforward",
    "depth": "num_layers",
}


def sparsity_from_hf(source: Source | None) -> SparsityConfig:
    """Without a `sparse_config` (a base LLaVA) nothing is dropped."""
    if source is None:
        return SparsityConfig().dense()
    default = SparsityConfig()
    text = source.flag("use_text_predictor")
    width = source.get("d_model", 512)
    with source.named(**_KEYS):
        return SparsityConfig(
            sparse_layer=source.need("sparse_layer"),
            image_selector=_learned(source.flag("use_vision_predictor")),
            image_keep_rate=source.real("vision_keep_rate", default.image_keep_rate),
            output_selector=_learned(text and source.flag("use_output_text_predictor")),
            output_keep_rate=source.real("output_text_keep_rate", default.output_keep_rate),
            instruct_selector=_learned(text and source.flag("use_instruct_predictor")),
            instruct_keep_rate=source.real("instruct_keep_rate", default.instruct_keep_rate),
            image_predictor=TransformerPredictor(
                width=width,
                num_heads=source.get("nhead", 8),
                mlp_width=source.get("dim_feedforward", 2048),
                depth=source.get("num_layers", 2),
            ),
            text_predictor=MlpPredictor(width=width),
        )


def sparsity_to_hf(config: SparsityConfig) -> dict[str, Any]:
    """Raises InputError for what the official code lacks: other places, other selectors, other predictors."""
    for place in ("tower", "embed", "image", "output", "instruct"):
        selector = getattr(config, f"{place}_selector")
        if selector not in (None, "learned"):
            raise InputError(f"The official layout cannot express {place}_selector {selector!r}; it has learned ones.")
    image, text = config.image_predictor, config.text_predictor
    if not isinstance(image, TransformerPredictor) or not isinstance(text, MlpPredictor):
        raise InputError(
            "The official layout has a TransformerPredictor for images and an MlpPredictor for text, not "
            f"{type(image).__name__} and {type(text).__name__}."
        )
    if image.width != text.width:
        raise InputError(
            f"The official layout has one width for all predictors, not {image.width} (image) and {text.width} (text)."
        )
    return {
        "sparse_layer": config.sparse_layer,
        "use_vision_predictor": config.image_selector is not None,
        "vision_keep_rate": config.image_keep_rate,
        "use_text_predictor": config.output_selector is not None or config.instruct_selector is not None,
        "use_output_text_predictor": config.output_selector is not None,
        "output_text_keep_rate": config.output_keep_rate,
        "use_instruct_predictor": config.instruct_selector is not None,
        "instruct_keep_rate": config.instruct_keep_rate,
        "d_model": image.width,
        "nhead": image.num_heads,
        "dim_feedforward": image.mlp_width,
        "num_layers": image.depth,
    }


def _learned(wanted: bool) -> str | None:
    return "learned" if wanted else None
