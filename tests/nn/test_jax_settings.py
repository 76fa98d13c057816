"""Options of JAX: random numbers are the same under all of them, and what would change the others is refused."""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Key

from dynllava_jax.config.training import TrainConfig
from dynllava_jax.errors import InputError
from dynllava_jax.inference.engine import Asked, _draws
from dynllava_jax.inference.load import load
from dynllava_jax.nn.jax_settings import check_jax_settings
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.testing import tiny_assistant, tiny_config
from dynllava_jax.training.state import fresh
from dynllava_jax.training.step import Trainer

KERNEL = "decoder/deep/attention/key/kernel"
Option = Callable[[], AbstractContextManager[Any]]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        (lambda: jax.enable_x64(True), "JAX_ENABLE_X64=1"),
        (lambda: jax.numpy_rank_promotion("raise"), "JAX_NUMPY_RANK_PROMOTION=raise"),
        (lambda: jax.numpy_dtype_promotion("strict"), "JAX_NUMPY_DTYPE_PROMOTION=strict"),
        (lambda: jax.threefry_partitionable(False), "JAX_THREEFRY_PARTITIONABLE=0"),
    ],
)
def test_what_is_refused(option: Option, words: str) -> None:
    config = tiny_config()
    with option():
        for door in (check_jax_settings, load, lambda: Trainer(config, TrainConfig(), make_mesh("data=1"), 10)):
            with pytest.raises(InputError, match=rf"^JAX is set to {words} .* does not support: leave it out"):
                door()


def test_what_is_refused_once_a_model_is_there() -> None:
    """As by a library that is imported after it, half-way through a conversation too."""
    assistant = tiny_assistant()
    chat = assistant.chat()
    first = chat.ask("Is it a cat?", max_new_tokens=2)
    with jax.enable_x64(True):
        for ask in (chat.ask, functools.partial(assistant.generate, None)):
            with pytest.raises(InputError, match=r"^JAX is set to JAX_ENABLE_X64=1"):
                ask("Is it a dog?", max_new_tokens=2)
        with pytest.raises(InputError, match=r"^JAX is set to JAX_ENABLE_X64=1"):
            assistant.generate(None, "Is it a dog?", use_cache=False)
    assert chat.ask("Is it a dog?", max_new_tokens=2).cache_tokens["shallow"] > first.cache_tokens["shallow"]


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_the_default_generator_has_no_say(kind: str) -> None:
    usual = drawn()
    with jax.default_prng_impl(kind):
        other = drawn()
    jax.tree.map(np.testing.assert_array_equal, usual, other)
    # A sample draws alone what it draws in a batch.
    np.testing.assert_array_equal(other["answer"][1:], other["alone"])


def drawn() -> dict[str, Any]:
    """A step's and an answer's random bits, and initial values."""
    trainer = Trainer(tiny_config(), TrainConfig(mesh="data=1"), make_mesh("data=1"), 10)
    return {
        "step": bits(trainer._keys(jnp.zeros((), jnp.int32), 4)),
        "answer": bits(keys_of([1, 2])),
        "alone": bits(keys_of([2])),
        "values": fresh(trainer.parameters, tiny_config(), trainer.config.optimizer, 3, [KERNEL]),
    }


def keys_of(seeds: list[int]) -> Key[Array, " B"]:
    zeros = np.zeros(len(seeds), np.float32)
    count = zeros.astype(np.int32)
    return _draws(Asked(count, zeros, count, zeros, np.asarray(seeds, np.uint32))).key


def bits(keys: Key[Array, " B"]) -> np.ndarray:
    return np.asarray(jax.vmap(lambda key: jax.random.bits(key, (8,)))(keys))
