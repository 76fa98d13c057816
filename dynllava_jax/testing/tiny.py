"""A whole model that fits in a test."""

import tempfile
from pathlib import Path

import jax
from flax import nnx

from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.presets import tiny
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.inference.assistant import Assistant
from dynllava_jax.inference.buckets import Buckets
from dynllava_jax.model.dynllava import DynamicLlava
from dynllava_jax.testing.tokenizer import write_tokenizer

_SHARPER = 6.0
"""The usual initial weights are so small that attention is flat and every decision a near tie."""


def tiny_config() -> ModelConfig:
    """16 image tokens, 4 decoder layers of width 64, a vocabulary of 512."""
    return tiny()


def tiny_model(config: ModelConfig | None = None, seed: int = 0) -> DynamicLlava:
    """A random float32 model whose attention and keep decisions vary."""
    model = DynamicLlava(nnx.Rngs(params=jax.random.key(seed)), config or tiny_config())
    return jax.tree.map(lambda x: x * _SHARPER if x.ndim > 1 else x, model)


def tiny_buckets() -> Buckets:
    """Short lists, so that tests compile little."""
    return Buckets(
        rows=(1, 4), images=(0, 1, 2), length=(64, 128, 256), answer=(16, 64), instruction=(32, 64), segment=16
    )


def tiny_assistant(config: ModelConfig | None = None, seed: int = 0, buckets: Buckets | None = None) -> Assistant:
    """A random model with a tokenizer of its own, ready to be asked."""
    config = config or tiny_config()
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder), vocab_size=config.decoder.vocab_size)
        tokenizer = Tokenizer.load(folder)
    return Assistant(tiny_model(config, seed), tokenizer, buckets=buckets or tiny_buckets(), random_weights=True)
