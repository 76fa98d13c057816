"""Case 11: the TokenPacker projector and the tower features that it reads, with weights of their own.

N images, P patches, C tower features, H W pixels.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from dynllava_jax.config.model import ImagePrep, ModelConfig
from dynllava_jax.config.vision import TokenPackerProjector, VisionConfig
from dynllava_jax.convert.table import TOKEN_PACKER, TOWER_ALONE, Rule, tower_rules
from dynllava_jax.model.token_packer import TokenPacker
from dynllava_jax.model.vision import VisionTower
from dynllava_jax.verify.cases import Case
from dynllava_jax.verify.computed import Computed
from dynllava_jax.verify.subject import Subject

_SEED = 12345
"""Of the full-size weights and inputs; the case's notes define them by it."""

_LEVELS = 4
_OFFICIAL_HEAD = 128
"""Width of one head in the official module."""

_STORED_SCALE, _PIXEL_SCALE = 4, 16
"""What the stored small integers are divided by."""

Module = TypeVar("Module", bound=nnx.Module)
Weights = Mapping[str, np.ndarray]


def token_packer(subject: Subject, case: Case) -> Computed:
    """11_tokenpacker: `model.token_packer` at small and full size, `model.vision` with several levels."""
    del subject
    found = Computed()
    scales = (re.fullmatch(r"small\.out_scale(\d+)", name) for name in case.outputs)
    for scale in (int(match[1]) for match in scales if match):
        _small(found, case, scale)
    if "full.out" in case.outputs:
        _full(found, case)
    if "tower.x" in case.outputs:
        _tower(found, case)
    return found


def _small(found: Computed, case: Case, scale: int) -> None:
    prefix, name = "small.param.", f"small.out_scale{scale}"
    weights = {key.removeprefix(prefix): value for key, value in case.inputs.items() if key.startswith(prefix)}
    count = len(case.outputs[name])
    x, multi = (case.inputs[f"small.{key}_int8"][:count].astype(np.float32) / _STORED_SCALE for key in ("x", "x_multi"))
    found.put(name, _pack(weights, x, multi, scale, _number("heads", case.summary)))


def _full(found: Computed, case: Case) -> None:
    random = np.random.RandomState(_SEED)
    weights = {}
    for name, shape in case.info["full_parameter_order_and_shape"]:
        drawn = random.standard_normal(shape).astype(np.float32)
        if name.startswith("ln_") and name.endswith(".weight"):
            weights[name] = 1 + np.float32(0.1) * drawn
        elif len(shape) == 1:
            weights[name] = np.float32(0.1) * drawn
        else:
            weights[name] = drawn * np.float32(1 / np.sqrt(shape[-1]))
    width, inputs = weights["q_proj_1.weight"].shape
    side = 24
    x, multi = (random.standard_normal((1, side**2, size)).astype(np.float32) for size in (inputs, inputs * _LEVELS))
    scale = side // round(case.outputs["full.out"].shape[1] ** 0.5)
    found.put("full.out", _pack(weights, x, multi, scale, width // _OFFICIAL_HEAD))


def _pack(weights: Weights, x: np.ndarray, multi: np.ndarray, scale: int, heads: int) -> jax.Array:
    width, inputs = weights["q_proj_1.weight"].shape
    config = TokenPackerProjector(scale=scale, width=width, num_heads=heads)
    grid, outputs = round(x.shape[1] ** 0.5), len(weights["mlp.2.bias"])
    packer = TokenPacker(nnx.Rngs(params=0), config, grid, inputs, outputs)
    packer = _fill(packer, "projector", (Rule(*row) for row in TOKEN_PACKER), weights)
    levels = jnp.split(jnp.asarray(multi), _LEVELS, axis=-1)
    return jax.jit(lambda packer, x, levels: packer(x, levels))(packer, jnp.asarray(x), levels)


def _tower(found: Computed, case: Case) -> None:
    names, shapes = zip(*case.info["tower_params"], strict=True)
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])
    flat = np.split(case.inputs["tower.params_flat"], ends[:-1])
    weights = {name: part.reshape(shape) for name, part, shape in zip(names, flat, shapes, strict=True)}
    low, pattern = (case.inputs[f"tower.{key}_int8"].astype(np.float32) / _PIXEL_SCALE for key in ("low", "pat"))
    # pixel[c, y, x] = low[c, y // 14, x // 14] · pattern[c, y % 14, x % 14]
    pixels = np.stack([np.kron(cells, patch) for cells, patch in zip(low, pattern, strict=True)])
    config = _tower_config(case, weights, low.shape[1], pattern.shape[1])
    tower = _fill(VisionTower(nnx.Rngs(params=0), config), "vision", tower_rules(TOWER_ALONE[0], config), weights)
    seen = jax.jit(lambda tower, pixels: tower(pixels))(tower, pixels.transpose(1, 2, 0)[None])
    assert seen.levels is not None
    found.put("tower.x", seen.features)
    found.put("tower.x_multi", np.concatenate(seen.levels, axis=-1))


def _tower_config(case: Case, weights: Weights, grid: int, patch: int) -> ModelConfig:
    size = grid * patch
    layers = {match[1] for name in weights if (match := re.search(r"encoder\.layers\.(\d+)\.", name))}
    vision = VisionConfig(
        hidden_size=len(weights["vision_model.embeddings.class_embedding"]),
        intermediate_size=len(weights["vision_model.encoder.layers.0.mlp.fc1.bias"]),
        num_layers=len(layers),
        num_heads=_number("heads", case.descriptions["tower.params_flat"]),
        image_size=size,
        patch_size=patch,
    )
    return ModelConfig(vision=vision, projector=TokenPackerProjector(), image_prep=ImagePrep(resize=size, crop=size))


def _number(word: str, text: str) -> int:
    """A size that the recording states in words only, such as "heads 4"."""
    match = re.search(rf"{word} (\d+)", text)
    assert match is not None, f"no number of {word} in {text!r}"
    return int(match[1])


def _fill(module: Module, room: str, rules: Iterable[Rule], weights: Weights) -> Module:
    """The module with torch's weights, named by the converter's table."""
    leaves = {rule.leaf: rule.transform.apply(weights[rule.source]) for rule in rules if rule.source in weights}
    graph, state = nnx.split(module)
    filled: list[tuple[tuple[Any, ...], Any]] = []
    for path, param in nnx.to_flat_state(state):
        name = "/".join(map(str, (room, *path)))
        if name not in leaves:  # a stacked one: a leaf for every layer
            head, rest = name.split("layers/", 1)
            leaves[name] = np.stack([leaves[f"{head}layers/{index}/{rest}"] for index in range(param.shape[0])])
        filled.append((path, param.replace(jnp.asarray(leaves[name]))))
    return nnx.merge(graph, nnx.from_flat_state(filled))
