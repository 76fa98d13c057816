"""The model that comes with the package, so that the first minute needs no download.

It has random weights for now: it shows every moving part, but its answers mean nothing, and the commands say so.
"""

from pathlib import Path

import jax
from flax import nnx

from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.presets import demo
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.model.dynllava import DynamicLlava

TOKENIZER = Path(__file__).parent / "tokenizer"

_SHARPER = 4.0
"""Initial weights are so small that every score is a near tie; larger ones make the selection visible."""


def config() -> ModelConfig:
    return demo()


def model(of: ModelConfig) -> DynamicLlava:
    """The embedded weights, float32, for `config()` or a variation of its sparsity."""
    weights = DynamicLlava(nnx.Rngs(params=jax.random.key(0)), of)
    return jax.tree.map(lambda x: x * _SHARPER if x.ndim > 1 else x, weights)


def tokenizer() -> Tokenizer:
    return Tokenizer.load(TOKENIZER)
