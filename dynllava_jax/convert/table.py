"""The one table between PyTorch's tensor names and ours, for every layout, read in both directions.

A *leaf* is a parameter of one layer under its path in the model checkpoint (`checkpoint.leaves`), such as
`decoder/layers/3/attention/query/kernel`; so tensors and leaves correspond one to one. Tensors that the model does
not use, such as the last tower layer, are *carried*: kept in the checkpoint, never loaded, written back on export.
"""

import dataclasses
import re

from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.vision import MlpProjector, TokenPackerProjector
from dynllava_jax.convert.transform import FlattenPatch, Keep, Transform, Transpose

KEEP, LINEAR, PATCH = Keep(), Transpose(), FlattenPatch()

Row = tuple[str, str, Transform]
"""Source name, leaf, transform; both names are relative to a prefix."""


@dataclasses.dataclass(frozen=True)
class Rule:
    source: str
    leaf: str
    transform: Transform


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where a family of checkpoints keeps its parts: the prefix of each (official modules, or llava-hf's)."""

    name: str
    decoder: str
    head: str
    projector: str
    towers: tuple[str, ...]
    """The first is the one that is written; the others are what some versions of transformers wrote."""


OFFICIAL = Layout(
    "official",
    "model.",
    "lm_head.weight",
    "model.mm_projector.",
    ("model.vision_tower.vision_tower.vision_model.", "model.vision_tower.vision_tower."),
)
LLAVA_HF = Layout(
    "llava-hf",
    "language_model.model.",
    "language_model.lm_head.weight",
    "multi_modal_projector.",
    ("vision_tower.vision_model.", "vision_tower."),
)
LLAVA_HF_5 = Layout(
    "llava-hf (module names of transformers 5)",
    "model.language_model.",
    "lm_head.weight",
    "model.multi_modal_projector.",
    ("model.vision_tower.vision_model.", "model.vision_tower."),
)
LAYOUTS = (OFFICIAL, LLAVA_HF, LLAVA_HF_5)

TOWER_ALONE = ("vision_model.", "")
"""Prefixes in a CLIPVisionModel or CLIPModel: of transformers up to 4, and of 5."""


def _linear(source: str, leaf: str) -> list[Row]:
    return [(f"{source}.weight", f"{leaf}/kernel", LINEAR), (f"{source}.bias", f"{leaf}/bias", KEEP)]


def _norm(source: str, leaf: str) -> list[Row]:
    return [(f"{source}.weight", f"{leaf}/scale", KEEP), (f"{source}.bias", f"{leaf}/bias", KEEP)]


DECODER: list[Row] = [
    ("embed_tokens.weight", "decoder/embedding", KEEP),
    ("norm.weight", "decoder/final_norm/scale", KEEP),
]

DECODER_LAYER: list[Row] = [
    ("input_layernorm.weight", "attention_norm/scale", KEEP),
    *_linear("self_attn.q_proj", "attention/query"),
    *_linear("self_attn.k_proj", "attention/key"),
    *_linear("self_attn.v_proj", "attention/value"),
    *_linear("self_attn.o_proj", "attention/out"),
    ("post_attention_layernorm.weight", "mlp_norm/scale", KEEP),
    ("mlp.gate_proj.weight", "mlp/gate/kernel", LINEAR),
    ("mlp.up_proj.weight", "mlp/up/kernel", LINEAR),
    ("mlp.down_proj.weight", "mlp/down/kernel", LINEAR),
]

TOWER: list[Row] = [
    ("embeddings.class_embedding", "vision/class_embedding", KEEP),
    ("embeddings.patch_embedding.weight", "vision/patch_embedding/kernel", PATCH),
    ("embeddings.position_embedding.weight", "vision/position_embedding", KEEP),
    *_norm("pre_layrnorm", "vision/pre_norm"),  # the spelling is transformers'
]

TOWER_LAYER: list[Row] = [
    *_norm("layer_norm1", "norm1"),
    *_linear("self_attn.q_proj", "attention/query"),
    *_linear("self_attn.k_proj", "attention/key"),
    *_linear("self_attn.v_proj", "attention/value"),
    *_linear("self_attn.out_proj", "attention/out"),
    *_norm("layer_norm2", "norm2"),
    *_linear("mlp.fc1", "mlp/up"),
    *_linear("mlp.fc2", "mlp/down"),
]

LLAVA_HF_PROJECTOR: list[Row] = [*_linear("linear_1", "projector/layers/0"), *_linear("linear_2", "projector/layers/1")]

TOKEN_PACKER: list[Row] = [
    ("q_proj_1.weight", "projector/query_proj/kernel", LINEAR),
    *_linear("k_proj_1.0", "projector/key_proj/0"),
    *_linear("k_proj_1.2", "projector/key_proj/1"),
    *_linear("v_proj_1.0", "projector/value_proj/0"),
    *_linear("v_proj_1.2", "projector/value_proj/1"),
    *_norm("ln_q_1", "projector/query_norm"),
    *_norm("ln_k_1", "projector/key_norm"),
    *_norm("ln_v_1", "projector/value_norm"),
    ("clip_attn.in_proj_weight", "projector/attention_in/kernel", LINEAR),
    ("clip_attn.in_proj_bias", "projector/attention_in/bias", KEEP),
    *_linear("clip_attn.out_proj", "projector/attention_out"),
    *_linear("mlp.0", "projector/mlp/0"),
    *_linear("mlp.2", "projector/mlp/1"),
]

IMAGE_PREDICTOR: list[Row] = [
    *_norm("image_score_predictor.down_mlp.0", "image_predictor/input_norm"),
    *_linear("image_score_predictor.down_mlp.1", "image_predictor/input_proj"),
    *_linear("image_score_predictor.output_mlp.0", "image_predictor/score/0"),
    *_linear("image_score_predictor.output_mlp.2", "image_predictor/score/1"),
    *_linear("image_score_predictor.output_mlp.4", "image_predictor/score/2"),
]

IMAGE_PREDICTOR_BLOCK: list[Row] = [
    *_norm("norm1", "norm1"),
    ("attn.qkv.weight", "qkv/kernel", LINEAR),
    *_linear("attn.proj", "out"),
    *_norm("norm2", "norm2"),
    *_linear("mlp.fc1", "mlp/up"),
    *_linear("mlp.fc2", "mlp/down"),
]

TEXT_PREDICTOR: list[Row] = [
    *_norm("output_mlp.0", "norm"),
    *_linear("output_mlp.1", "layers/0"),
    *_linear("output_mlp.3", "layers/1"),
    *_linear("output_mlp.5", "layers/2"),
    *_linear("output_mlp.7", "layers/3"),
]

TEXT_PREDICTORS = {
    "output_text_score_predictor.": "output_predictor/",
    "instruct_score_predictor.": "instruct_predictor/",
}

PREDICTOR = re.compile(r"model\.(image|output_text|instruct)_score_predictor\.")
UNUSED_IN_TOWER = re.compile(r"post_layernorm\.(weight|bias)|embeddings\.position_ids")
UNUSED_IN_DECODER = re.compile(r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")
IMAGE_NEWLINE = ("image_newline", "model.image_newline")
"""LLaVA-1.6 puts it between the rows of its tiles."""
CLIP_TEXT = re.compile(r"text_model\..*|(text|visual)_projection\.weight|logit_scale")
"""What a whole CLIPModel holds beside its tower; not part of a LLaVA, so dropped, and the count is said."""


def decoder_rules(layout: Layout, config: ModelConfig, single: str | None = None) -> list[Rule]:
    """Decoder, head, projector and predictors: everything but the tower.

    `single`: the `mm_projector_type` under which a projector of one layer is called; None: its names under both.
    """
    rules = _at(layout.decoder, "", DECODER)
    rules.append(Rule(layout.head, "decoder/head/kernel", LINEAR))
    for i in range(config.decoder.num_layers):
        rules += _at(f"{layout.decoder}layers.{i}.", f"decoder/layers/{i}/", DECODER_LAYER)
    rules += _at(layout.projector, "", _projector_rows(layout, config, single))
    if layout is OFFICIAL:
        rules += _predictor_rules(layout, config)
    return rules


def tower_rules(prefix: str, config: ModelConfig) -> list[Rule]:
    """The tower layers that are used, under `prefix` (see `Layout.towers`, `TOWER_ALONE`)."""
    return _at(prefix, "", TOWER) + _tower_layers(prefix, range(config.layers_used))


def carried_in_tower(prefix: str, config: ModelConfig, source: str) -> bool:
    """Whether `source` belongs to the tower but is not used: its layers above the selected one, the final norm."""
    if not source.startswith(prefix):
        return False
    rest = source[len(prefix) :]
    unused = {rule.source for rule in unused_tower_rules("", config)}
    return rest in unused or UNUSED_IN_TOWER.fullmatch(rest) is not None


def unused_tower_rules(prefix: str, config: ModelConfig) -> list[Rule]:
    """The layers above the selected one, whose leaves no model has; their shapes are those of the first layer."""
    return _tower_layers(prefix, range(config.layers_used, config.vision.num_layers))


def carried_in_decoder(layout: Layout, config: ModelConfig, source: str) -> bool:
    """Whether `source` is a buffer that old versions saved, or the head's copy of tied embeddings."""
    if source in IMAGE_NEWLINE or (config.decoder.tie_embeddings and source == layout.head):
        return True
    return source.startswith(layout.decoder) and bool(UNUSED_IN_DECODER.fullmatch(source[len(layout.decoder) :]))


def _at(source_prefix: str, leaf_prefix: str, rows: list[Row]) -> list[Rule]:
    return [Rule(source_prefix + source, leaf_prefix + leaf, transform) for source, leaf, transform in rows]


def _tower_layers(prefix: str, layers: range) -> list[Rule]:
    return [rule for i in layers for rule in _at(f"{prefix}encoder.layers.{i}.", f"vision/layers/{i}/", TOWER_LAYER)]


def _projector_rows(layout: Layout, config: ModelConfig, single: str | None) -> list[Row]:
    projector = config.projector
    if isinstance(projector, TokenPackerProjector):
        return TOKEN_PACKER
    if not isinstance(projector, MlpProjector):
        return []
    if layout is not OFFICIAL:
        return LLAVA_HF_PROJECTOR
    # The official `linear` is a bare layer; `mlpNx_gelu` is a Sequential with activations at the odd numbers.
    bare: list[Row] = [("weight", "projector/layers/0/kernel", LINEAR), ("bias", "projector/layers/0/bias", KEEP)]
    numbered = [row for i in range(projector.depth) for row in _linear(str(2 * i), f"projector/layers/{i}")]
    if projector.depth > 1 or single == "mlp1x_gelu":
        return numbered
    return bare if single == "linear" else bare + numbered


def _predictor_rules(layout: Layout, config: ModelConfig) -> list[Rule]:
    rules = _at(layout.decoder, "", IMAGE_PREDICTOR)
    depth = getattr(config.sparsity.image_predictor, "depth", 0)
    for i in range(depth):
        source = f"{layout.decoder}image_score_predictor.transformer.{i}."
        rules += _at(source, f"image_predictor/blocks/{i}/", IMAGE_PREDICTOR_BLOCK)
    for source, leaf in TEXT_PREDICTORS.items():
        rules += _at(layout.decoder + source, leaf, TEXT_PREDICTOR)
    return rules
