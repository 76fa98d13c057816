"""What is measured: random weights of any published shape, and prompts that mean nothing.

S sequence, M images, H W pixels.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from dynllava_jax.checkpoint.leaves import abstract_model
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.data.prompt import IMAGE_TOKEN
from dynllava_jax.data.spans import IGNORE, Sample, expand
from dynllava_jax.model.dynllava import DynamicLlava

_FIRST_ID = 3
_STD = 0.02


def with_room(config: ModelConfig, tokens: int) -> ModelConfig:
    """The same shapes for sequences of so many tokens. Beyond its context a model says nothing of sense, as fast."""
    if tokens <= config.decoder.context:
        return config
    return dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, max_positions=tokens))


def random_model(config: ModelConfig, dtype: str, seed: int = 0) -> DynamicLlava:
    """Weights drawn one stack at a time where they will stay, so that a model needs no more than its own memory."""
    shapes, structure = jax.tree.flatten(abstract_model(config))
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    draw = jax.jit(_draw, static_argnames=("shape", "dtype"))
    return jax.tree.unflatten(structure, [draw(key, x.shape, dtype) for key, x in zip(keys, shapes, strict=True)])


def _draw(key: jax.Array, shape: tuple[int, ...], dtype: str) -> jax.Array:
    """Layer by layer: what drawing needs besides its result, some float32 of the same shape, is that of one."""

    def one(key: jax.Array) -> jax.Array:
        return _STD * jax.random.normal(key, shape[-2:], jnp.dtype(dtype))

    if len(shape) < 3:
        return one(key)
    layers = jax.random.split(key, math.prod(shape[:-2]))
    return jax.lax.map(one, layers).reshape(shape)


def random_sample(config: ModelConfig, seed: int, *, text: int, images: int, answer: int = 0) -> Sample:
    """Images first, then `text` tokens, of which the last `answer` ones are to be predicted."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(_FIRST_ID, config.decoder.vocab_size, text)
    labels = np.where(np.arange(text) >= text - answer, ids, IGNORE)
    ids, labels = (np.insert(x, 1, [filler] * images) for x, filler in ((ids, IMAGE_TOKEN), (labels, IGNORE)))
    return expand(
        ids,
        labels if answer else None,
        image_tokens=config.image_tokens,
        round_ids=config.text_prep.round_ids,
    )


def random_pixels(config: ModelConfig, seed: int, images: int) -> list[np.ndarray]:
    rng, side = np.random.default_rng(seed), config.vision.image_size
    return [rng.standard_normal((side, side, 3), np.float32) for _ in range(images)]
