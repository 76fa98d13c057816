"""The goldens' torch weights, put into our modules by hand: kept apart from the converter, which it checks."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors.numpy import load_file

from tests.golden_files import ROOT

TOWER = "model.vision_tower.vision_tower.vision_model."
_TOWER_LAYER = {
    "norm1": "layer_norm1",
    "attention/query": "self_attn.q_proj",
    "attention/key": "self_attn.k_proj",
    "attention/value": "self_attn.v_proj",
    "attention/out": "self_attn.out_proj",
    "norm2": "layer_norm2",
    "mlp/up": "mlp.fc1",
    "mlp/down": "mlp.fc2",
}
_PREDICTOR_BLOCK = {
    "norm1": "norm1",
    "qkv": "attn.qkv",
    "out": "attn.proj",
    "norm2": "norm2",
    "mlp/up": "mlp.fc1",
    "mlp/down": "mlp.fc2",
}


def checkpoint() -> dict[str, np.ndarray]:
    return load_file(ROOT / "checkpoint" / "model.safetensors")


def fill_layer(module: Any, path: str, weights: Mapping[str, np.ndarray], name: str) -> None:
    """Sets the linear or norm layer at `path` from torch's `name`.weight and `name`.bias; `{}` stands for 0, 1, …"""
    layer = _at(module, path)
    kernel = _get(weights, f"{name}.weight")
    if hasattr(layer, "kernel"):
        _set(layer.kernel, np.swapaxes(kernel, -1, -2))
    else:
        _set(layer.scale, kernel)
    if layer.bias is not None:
        _set(layer.bias, _get(weights, f"{name}.bias"))


def fill_tower(tower: Any, weights: Mapping[str, np.ndarray], prefix: str) -> None:
    _set(tower.class_embedding, weights[f"{prefix}embeddings.class_embedding"])
    _set(tower.position_embedding, weights[f"{prefix}embeddings.position_embedding.weight"])
    patch = weights[f"{prefix}embeddings.patch_embedding.weight"]
    _set(tower.patch_embedding.kernel, patch.transpose(2, 3, 1, 0).reshape(-1, patch.shape[0]))
    fill_layer(tower, "pre_norm", weights, f"{prefix}pre_layrnorm")
    for ours, theirs in _TOWER_LAYER.items() if tower.num_layers else ():
        fill_layer(tower, f"layers/{ours}", weights, f"{prefix}encoder.layers.{{}}.{theirs}")


def fill_image_predictor(scorer: Any, weights: Mapping[str, np.ndarray]) -> None:
    prefix = "model.image_score_predictor."
    fill_layer(scorer, "input_norm", weights, f"{prefix}down_mlp.0")
    fill_layer(scorer, "input_proj", weights, f"{prefix}down_mlp.1")
    for ours, theirs in _PREDICTOR_BLOCK.items():
        fill_layer(scorer, f"blocks/{ours}", weights, f"{prefix}transformer.{{}}.{theirs}")
    for index in range(3):
        fill_layer(scorer, f"score/{index}", weights, f"{prefix}output_mlp.{2 * index}")


def fill_text_predictor(scorer: Any, weights: Mapping[str, np.ndarray], name: str) -> None:
    fill_layer(scorer, "norm", weights, f"model.{name}_score_predictor.output_mlp.0")
    for index in range(4):
        fill_layer(scorer, f"layers/{index}", weights, f"model.{name}_score_predictor.output_mlp.{2 * index + 1}")


def fill_token_packer(packer: Any, weights: Mapping[str, np.ndarray]) -> None:
    fill_layer(packer, "query_proj", weights, "q_proj_1")
    for ours, theirs in {"key_proj": "k_proj_1", "value_proj": "v_proj_1", "mlp": "mlp"}.items():
        fill_layer(packer, f"{ours}/0", weights, f"{theirs}.0")
        fill_layer(packer, f"{ours}/1", weights, f"{theirs}.2")
    for ours, theirs in {"query_norm": "ln_q_1", "key_norm": "ln_k_1", "value_norm": "ln_v_1"}.items():
        fill_layer(packer, ours, weights, theirs)
    _set(packer.attention_in.kernel, weights["clip_attn.in_proj_weight"].T)
    _set(packer.attention_in.bias, weights["clip_attn.in_proj_bias"])
    fill_layer(packer, "attention_out", weights, "clip_attn.out_proj")


def _get(weights: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if "{}" not in name:
        return weights[name]
    count = sum(name.format(index) in weights for index in range(100))
    return np.stack([weights[name.format(index)] for index in range(count)])


def _set(parameter: nnx.Param, value: np.ndarray) -> None:
    if parameter.ndim == value.ndim and parameter.shape[0] < value.shape[0]:
        value = value[: parameter.shape[0]]  # the tower's last layers, which nobody reads
    assert parameter.shape == value.shape
    parameter.set_value(jnp.asarray(value))


def _at(module: Any, path: str) -> Any:
    for name in path.split("/"):
        module = module[int(name)] if name.isdigit() else getattr(module, name)
    return module
