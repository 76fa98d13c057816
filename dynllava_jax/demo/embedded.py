"""The model that comes with the package, so that the first minute needs no download.

Its trained weights lie in `checkpoint/`. Where that folder is missing there are random weights: they show every moving
part, but their answers mean nothing, and the commands say so.
"""

from pathlib import Path

import jax
from flax import nnx

from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.presets import demo
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.model.dynllava import DynamicLlava

CHECKPOINT = Path(__file__).parent / "checkpoint"
TOKENIZER = Path(__file__).parent / "tokenizer"

_SHARPER = 4.0
"""Initial weights are so small that every score is a near tie; larger ones make the selection visible."""


def trained() -> bool:
    """Whether the trained weights are there."""
    return CHECKPOINT.is_dir()


def config() -> ModelConfig:
    return demo()


def model(of: ModelConfig) -> DynamicLlava:
    """Random weights, float32, for `config()` or a variation of its sparsity."""
    weights = DynamicLlava(nnx.Rngs(params=jax.random.key(0)), of)
    return jax.tree.map(lambda x: x * _SHARPER if x.ndim > 1 else x, weights)


def tokenizer() -> Tokenizer:
    return Tokenizer.load(TOKENIZER)
