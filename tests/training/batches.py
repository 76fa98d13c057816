"""Small training batches: answers of several lengths, images anywhere, several or none."""

import dataclasses

import jax
import numpy as np

from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.training import InitConfig, LossConfig, OptimizerConfig, TrainConfig
from dynllava_jax.data.batch import Batch, make_batch
from dynllava_jax.data.spans import IGNORE, Sample, expand
from dynllava_jax.testing import tiny_config

IMAGE = -200


def sample(config: ModelConfig, seed: int, prompt: int, answer: int, images: int = 1, tail: int = 0) -> Sample:
    """`images` images somewhere in a prompt of random tokens, then an answer; `tail` more tokens without labels."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, config.decoder.vocab_size, prompt + answer + tail)
    labels = np.where((np.arange(ids.size) >= prompt) & (np.arange(ids.size) < prompt + answer), ids, IGNORE)
    at = np.sort(rng.integers(1, prompt, images))
    ids, labels = np.insert(ids, at, IMAGE), np.insert(labels, at, IGNORE)
    return expand(ids, labels, image_tokens=config.image_tokens, round_ids=config.text_prep.round_ids)


def batch_of(config: ModelConfig, samples: list[Sample], rows: int | None = None, length: int = 64) -> Batch:
    """A batch on the device, with a random picture for every image."""
    rng = np.random.default_rng(7)
    size = config.vision.image_size
    pixels = [
        [rng.standard_normal((size, size, 3)).astype(np.float32) for _ in range(own.image_count)] for own in samples
    ]
    slots = max(own.image_count for own in samples)
    made = make_batch(samples, pixels, length=length, slots=slots, rows=rows or len(samples))
    return jax.tree.map(jax.numpy.asarray, made)


def mixed(config: ModelConfig, rows: int = 8) -> Batch:
    """Long and short answers, one image each."""
    lengths = [(12, 14), (20, 3), (8, 22), (15, 9), (10, 5), (25, 12), (9, 16), (14, 7)]
    return batch_of(config, [sample(config, i, *lengths[i % 8]) for i in range(rows)])


def settings(**changes: object) -> TrainConfig:
    """A run in float32 with learning rates that move something.

    With Adam's usual eps the direction of a gradient that is 0 but for rounding would be noise.
    """
    optimizer = OptimizerConfig(learning_rate=1e-3, predictor_learning_rate=2e-3, warmup_ratio=0.0, eps=1e-4)
    config = TrainConfig(
        model="tiny",
        init=InitConfig(seed=1),
        optimizer=optimizer,
        loss=LossConfig(min_answer_tokens=6, min_instruction_tokens=5, chunk=32),
        global_batch_size=8,
        dtype="float32",
        mesh="data=1",
    )
    return dataclasses.replace(config, **changes)  # pyright: ignore[reportArgumentType]


def instructed() -> ModelConfig:
    """The tiny model with the instruct predictor too."""
    config = tiny_config()
    return dataclasses.replace(config, sparsity=dataclasses.replace(config.sparsity, instruct_selector="learned"))
