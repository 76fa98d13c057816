"""The names under which a model checkpoint keeps parameters: one leaf per parameter of one layer.

A stacked parameter of the model (`decoder/deep/mlp/up/kernel [L-l, …]`) is kept as one leaf per layer
(`decoder/layers/7/mlp/up/kernel`), numbered through both stacks, so that a checkpoint does not depend on
`sparse_layer` and a finished layer is a unit of work.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from dynllava_jax.config.model import ModelConfig
from dynllava_jax.model.dynllava import DynamicLlava, selector_classes
from dynllava_jax.nn.param import AXES

SELECTORS = ("tower_selector/", "embed_selector/", "image_predictor/", "output_predictor/", "instruct_predictor/")
"""Where the parameters of token selectors lie: absent in a base LLaVA, unused in dense mode."""

REST = "rest"

_LARGE = {"decoder/embedding": "embedding", "decoder/head/": "head", "vision/": "vision"}


@dataclasses.dataclass(frozen=True)
class Target:
    """One parameter of the model and the leaves that fill it, in order; `stacked` ones along the first axis."""

    path: str
    shape: tuple[int, ...]
    leaves: tuple[str, ...]
    stacked: bool

    @property
    def leaf_shape(self) -> tuple[int, ...]:
        return self.shape[1:] if self.stacked else self.shape


def abstract_model(config: ModelConfig) -> DynamicLlava:
    """The model with shapes in place of arrays; costs no memory at any size. One for all who ask: not to be changed."""
    return _abstract_model(config, selector_classes(config))


def targets(config: ModelConfig) -> tuple[Target, ...]:
    """Every parameter of the model that `config` describes."""
    return _targets(config, selector_classes(config))


@functools.lru_cache(maxsize=8)  # a run asks for it again and again
def _abstract_model(config: ModelConfig, classes: tuple[Any, ...]) -> DynamicLlava:
    del classes  # which the names in the config stand for
    return jax.eval_shape(lambda: DynamicLlava(nnx.Rngs(params=jax.random.key(0)), config))


@functools.lru_cache(maxsize=8)
def _targets(config: ModelConfig, classes: tuple[Any, ...]) -> tuple[Target, ...]:
    return tuple(
        _target("/".join(map(str, path)), param, config)
        for path, param in nnx.to_flat_state(nnx.state(_abstract_model(config, classes)))
    )


def leaf_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shape of every leaf that a checkpoint of this model holds."""
    return {leaf: target.leaf_shape for target in targets(config) for leaf in target.leaves}


def nbytes(shape: Sequence[int], dtype: str) -> int:
    """What an array takes."""
    return math.prod(shape) * np.dtype(dtype).itemsize


def item_of(leaf: str) -> str:
    """The Orbax pytree that holds a leaf: one per decoder layer, one for each other large part, one for the rest.

    Readers find a leaf wherever hashes.json has it, so that older checkpoints may be cut otherwise.
    """
    if match := re.match(r"decoder/layers/(\d+)/", leaf):
        return f"decoder_{int(match[1]):03d}"
    return next((item for prefix, item in _LARGE.items() if leaf.startswith(prefix)), REST)


def is_selector(leaf: str) -> bool:
    return leaf.startswith(SELECTORS)


def _target(path: str, param: Any, config: ModelConfig) -> Target:
    shape = tuple(param.shape)
    stacked = len(param.get_metadata().get(AXES, shape)) < len(shape)
    shift = config.sparsity.sparse_layer
    for prefix, leaf_prefix, first in (
        ("decoder/shallow/", "decoder/layers/", 0),
        ("decoder/deep/", "decoder/layers/", shift),
        ("vision/layers/", "vision/layers/", 0),
        ("image_predictor/blocks/", "image_predictor/blocks/", 0),
    ):
        if stacked and path.startswith(prefix):
            rest = path[len(prefix) :]
            leaves = tuple(f"{leaf_prefix}{first + i}/{rest}" for i in range(shape[0]))
            return Target(path, shape, leaves, True)
    return Target(path, shape, (path,), False)
