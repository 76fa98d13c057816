"""Case 11: the TokenPacker projector and the tower that feeds it, with weights that the case brings along.

N images, P patches, Q packed tokens, C tower features, W packer width, D decoder features.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynllava_jax.checkpoint.leaves import targets
from dynllava_jax.config.model import ImagePrep, ModelConfig
from dynllava_jax.config.vision import TokenPackerProjector, VisionConfig
from dynllava_jax.convert.table import TOKEN_PACKER, TOWER_ALONE, Rule, tower_rules
from dynllava_jax.errors import InputError
from dynllava_jax.model.projector import make_projector
from dynllava_jax.model.vision import VisionTower
from dynllava_jax.nn.flat import unflatten
from dynllava_jax.verify.cases import Case
from dynllava_jax.verify.computed import Computed
from dynllava_jax.verify.subject import Subject

Weights = Mapping[str, np.ndarray]

_RULES = [Rule(*row) for row in TOKEN_PACKER]


def packed(subject: Subject, case: Case) -> Computed:
    """11_tokenpacker: `model.token_packer` small and at full size, `model.vision` with its four levels."""
    found = Computed()
    _small(found, subject.config, case)
    if "full.out" in case.outputs:
        _full(found, subject.config, case)
    if "tower.x" in case.outputs:
        _tower(found, subject.config, case)
    return found


def _small(found: Computed, base: ModelConfig, case: Case) -> None:
    prefix = "small.param."
    weights = {name.removeprefix(prefix): value for name, value in case.inputs.items() if name.startswith(prefix)}
    heads = _said(r"heads (\d+)", [case.summary])
    x, multi = (case.inputs[f"small.{name}"].astype(np.float32) / 4 for name in ("x_int8", "x_multi_int8"))
    for name, reference in case.outputs.items():
        if name.startswith("small.out_scale"):
            scale, rows = int(name.removeprefix("small.out_scale")), len(reference)
            found.put(name, _pack(base, weights, scale, heads, x[:rows], multi[:rows]))


def _full(found: Computed, base: ModelConfig, case: Case) -> None:
    """Weights and features by the numpy seed that the notes give, drawn in the order that they give."""
    draws = np.random.RandomState(_said(r"RandomState\((\d+)\)", case.notes))
    weights: dict[str, np.ndarray] = {}
    for name, shape in case.info["full_parameter_order_and_shape"]:
        drawn = draws.standard_normal(shape).astype(np.float32)
        if len(shape) == 2:
            weights[name] = drawn / np.float32(math.sqrt(shape[-1]))
        elif name.startswith("ln_") and name.endswith("weight"):
            weights[name] = 1 + np.float32(0.1) * drawn
        else:
            weights[name] = np.float32(0.1) * drawn
    patches = math.prod(case.inputs["tower.low_int8"].shape[1:])
    x, multi = (
        draws.standard_normal((1, patches, weights[f"{name}.weight"].shape[1])).astype(np.float32)
        for name in ("q_proj_1", "k_proj_1.0")
    )
    scale = math.isqrt(patches // case.outputs["full.out"].shape[1])
    heads = _said(r"(\d+) heads", [case.summary])
    found.put("full.out", _pack(base, weights, scale, heads, x, multi))


def _pack(base: ModelConfig, weights: Weights, scale: int, heads: int, x: np.ndarray, multi: np.ndarray) -> np.ndarray:
    """Builds the projector for these features [N, P, C] and [N, P, levels·C] and runs it."""
    inputs, count = x.shape[2], multi.shape[2] // x.shape[2]
    packer = TokenPackerProjector(
        scale=scale, width=len(weights["q_proj_1.weight"]), num_heads=heads, levels=tuple(range(count))
    )
    vision = dataclasses.replace(_vision(math.isqrt(x.shape[1])), hidden_size=inputs, num_heads=1)
    config = _config(base, vision, packer, outputs=len(weights["mlp.2.weight"]))
    projector = _filled(lambda rngs: make_projector(rngs, config), "projector/", config, _RULES, weights)
    levels = np.split(multi, count, axis=-1)
    return np.asarray(jax.jit(lambda projector, x, levels: projector(x, levels))(projector, x, levels))


def _tower(found: Computed, base: ModelConfig, case: Case) -> None:
    said = case.descriptions["tower.params_flat"]
    order: Sequence[tuple[str, list[int]]] = case.info["tower_params"]
    shapes = dict(order)
    ends = np.cumsum([math.prod(shape) for _, shape in order])
    parts = np.split(case.inputs["tower.params_flat"], ends[:-1])
    weights = {name: part.reshape(shape) for (name, shape), part in zip(order, parts, strict=True)}
    low, pattern = (case.inputs[f"tower.{name}_int8"].astype(np.float32) / 16 for name in ("low", "pat"))
    pixels = np.kron(low, np.ones((1, *pattern.shape[1:]), np.float32)) * np.tile(pattern, (1, *low.shape[1:]))
    vision = dataclasses.replace(
        _vision(low.shape[1], pattern.shape[1]),
        hidden_size=shapes["vision_model.embeddings.class_embedding"][0],
        intermediate_size=shapes["vision_model.encoder.layers.0.mlp.fc1.weight"][0],
        num_layers=1 + max(int(number) for number in re.findall(r"encoder\.layers\.(\d+)", " ".join(shapes))),
        num_heads=_said(r"heads (\d+)", [said]),
    )
    config = _config(base, vision, TokenPackerProjector(), base.decoder.hidden_size)
    rules = tower_rules(TOWER_ALONE[0], config)
    tower = _filled(lambda rngs: VisionTower(rngs, config), "vision/", config, rules, weights)
    seen = jax.jit(lambda tower, pixels: tower(pixels))(tower, pixels.transpose(1, 2, 0)[None])
    assert seen.levels is not None
    found.put("tower.x", seen.features)
    found.put("tower.x_multi", np.concatenate(seen.levels, axis=-1))


def _vision(grid: int, patch_size: int = 14) -> VisionConfig:
    return VisionConfig(image_size=grid * patch_size, patch_size=patch_size)


def _config(base: ModelConfig, vision: VisionConfig, packer: TokenPackerProjector, outputs: int) -> ModelConfig:
    return dataclasses.replace(
        base,
        vision=vision,
        projector=packer,
        decoder=dataclasses.replace(base.decoder, hidden_size=outputs),
        image_prep=ImagePrep(resize=vision.image_size, crop=vision.image_size),
    )


def _filled(
    make: Callable[[nnx.Rngs], Any], part: str, config: ModelConfig, rules: Iterable[Rule], weights: Weights
) -> Any:
    """A part of the model with the torch weights that the converter's own rules put there."""
    leaves = {rule.leaf: rule.transform.apply(weights[rule.source]) for rule in rules}
    values = {
        target.path.removeprefix(part): jnp.asarray(
            np.stack([leaves[leaf] for leaf in target.leaves]) if target.stacked else leaves[target.path]
        )
        for target in targets(config)
        if target.path.startswith(part)
    }
    return unflatten(jax.eval_shape(lambda: make(nnx.Rngs(params=jax.random.key(0)))), values)


def _said(pattern: str, texts: Iterable[str]) -> int:
    """A number that the recording only gives in words."""
    for text in texts:
        if match := re.search(pattern, text):
            return int(match[1])
    raise InputError(f"11_tokenpacker.json does not say {pattern} in its summary, notes or descriptions.")
