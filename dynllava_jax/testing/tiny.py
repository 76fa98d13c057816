"""A whole model that fits in a test."""

import math
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.presets import tiny
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.inference.assistant import Assistant
from dynllava_jax.inference.buckets import Buckets
from dynllava_jax.model.dynllava import DynamicLlava
from dynllava_jax.model.predictors import MlpScorer
from dynllava_jax.testing.tokenizer import write_tokenizer

_EMBEDDING_STD = 0.12
_PREDICTOR_GAIN = 1.7
"""The usual initial weights are so small that attention is flat and every decision a near tie."""


def tiny_config() -> ModelConfig:
    """16 image tokens, 4 decoder layers of width 64, a vocabulary of 512."""
    return tiny()


def tiny_model(config: ModelConfig | None = None, seed: int = 0) -> DynamicLlava:
    """A random float32 model whose attention and keep decisions vary."""
    model = DynamicLlava(nnx.Rngs(params=jax.random.key(seed)), config or tiny_config())

    def sharpen(path: tuple[Any, ...], x: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if "kernel" in name:
            gain = _PREDICTOR_GAIN if "predictor" in name else 1.0
            return x * (gain / math.sqrt(x.shape[-2]) / jnp.std(x))
        return x * (_EMBEDDING_STD / jnp.std(x)) if "embedding" in name else x

    model = jax.tree_util.tree_map_with_path(sharpen, model)
    for predictor in (model.output_predictor, model.instruct_predictor):
        if isinstance(predictor, MlpScorer):
            _balance(predictor, jax.random.normal(jax.random.key(seed), (512, model.config.decoder.hidden_size)))
    return model


def _balance(predictor: MlpScorer, hidden: jax.Array) -> None:
    """Shifts the keep logit so that half of such hidden states are kept."""
    logits = predictor.logits(hidden)
    last = predictor.layers[-1]
    assert last.bias is not None
    last.bias[...] = last.bias[...].at[0].add(-jnp.median(logits[:, 0] - logits[:, 1]))


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
    return Assistant(tiny_model(config, seed), tokenizer, buckets=buckets or tiny_buckets())
