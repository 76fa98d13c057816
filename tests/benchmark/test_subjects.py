"""What the benchmarks run on is what it is said to be."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllava_jax.benchmark import subjects
from dynllava_jax.benchmark.subjects import random_model, random_sample, with_room
from dynllava_jax.checkpoint.leaves import abstract_model
from dynllava_jax.data.spans import IGNORE, Kind
from dynllava_jax.testing import tiny_config

CONFIG = tiny_config()


@pytest.mark.slow
def test_random_weights_have_the_models_shapes_and_no_other_dtype() -> None:
    model, wanted = random_model(CONFIG, "bfloat16"), abstract_model(CONFIG)
    assert jax.tree.structure(model) == jax.tree.structure(wanted)
    for ours, theirs in zip(jax.tree.leaves(model), jax.tree.leaves(wanted), strict=True):
        assert (ours.shape, ours.dtype) == (theirs.shape, jnp.bfloat16)
        assert jnp.isfinite(ours.astype(jnp.float32)).all()


def test_a_stack_is_drawn_layer_by_layer() -> None:
    """At once it takes eight times its own bytes on a CPU, more than a model leaves free."""
    draw = jax.jit(subjects._draw, static_argnames=("shape", "dtype"))
    layers, rows, columns = 16, 64, 128
    drawn = draw(jax.random.key(0), (layers, rows, columns), "bfloat16")
    assert len(np.unique(np.asarray(drawn[:, :2].astype(jnp.float32)).reshape(layers, -1), axis=0)) == layers
    assert 0.018 < float(jnp.std(drawn.astype(jnp.float32))) < 0.022
    memory = draw.lower(jax.random.key(0), drawn.shape, "bfloat16").compile().memory_analysis()
    assert memory is not None
    assert memory.temp_size_in_bytes < memory.output_size_in_bytes


def test_a_sample_has_the_tokens_asked_for() -> None:
    sample = random_sample(CONFIG, 0, text=10, images=2, answer=4)
    assert sample.length == 10 + 2 * CONFIG.image_tokens
    assert np.sum(sample.kind == Kind.IMAGE) == 2 * CONFIG.image_tokens
    assert sample.labels is not None
    assert np.sum(sample.labels != IGNORE) == 4
    assert random_sample(CONFIG, 0, text=10, images=0).labels is None


def test_room_is_made_only_where_it_lacks() -> None:
    assert with_room(CONFIG, 512) is CONFIG
    assert with_room(CONFIG, 513).decoder.context == 513
