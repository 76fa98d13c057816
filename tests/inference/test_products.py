"""Answers by fused products: the same as by XLA's, and refused where they would not be."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynllava_jax.config.training import LoraConfig
from dynllava_jax.errors import InputError
from dynllava_jax.inference.buckets import Buckets, Shape
from dynllava_jax.inference.engine import Engine
from dynllava_jax.kernels.products import Products
from dynllava_jax.model.decoder import DecoderLayer, run_stack
from dynllava_jax.model.fused import run_fused
from dynllava_jax.nn.rope import rope
from dynllava_jax.nn.stack import stack
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.testing import tiny_config, tiny_model
from tests.inference.random_batches import PLAIN, STOP_IDS, TOLERANCE, prompt, run

SHAPE = Shape(rows=4, images=1, length=64, deep_length=56, answer=16)
BUCKETS = Buckets(rows=(4,), images=(0, 1), length=(96,), answer=(24,), instruction=(32,), segment=24)


def engine(**options: Any) -> Engine:
    config = dataclasses.replace(tiny_config(), sparsity=PLAIN)
    return Engine(tiny_model(config), buckets=BUCKETS, stop_ids=STOP_IDS, collect_logits=True, **options)


def test_answers_are_those_of_xla() -> None:
    rng = np.random.default_rng(0)
    prompts = [prompt(rng, 20, 1) for _ in range(3)]
    for one, other in zip(
        run(engine(products="triton-interpret"), prompts, SHAPE, PLAIN),
        run(engine(), prompts, SHAPE, PLAIN),
        strict=True,
    ):
        assert one.tokens == other.tokens
        assert one.keep == other.keep
        np.testing.assert_allclose(one.logits, other.logits, rtol=0, atol=TOLERANCE)


def one_token(layers: Any, dtype: str = "float32") -> Any:
    config = tiny_config().decoder
    hidden = jnp.ones((2, 1, config.hidden_size), dtype)
    by = rope(config, jnp.zeros((2, 1), jnp.int32))
    return run_fused(Products(interpret=True), layers, hidden, by, lambda query, key, value, layer: query)


@pytest.mark.parametrize(
    ("changes", "lora", "dtype", "said"),
    [
        ({"attention_bias": True}, None, "float32", "has a bias or adapters"),
        ({}, LoraConfig(rank=2), "float32", "has a bias or adapters"),
        ({}, None, "bfloat16", "weights are float32, computation is bfloat16"),
    ],
)
def test_what_is_not_served_is_refused(changes: dict[str, Any], lora: LoraConfig | None, dtype: str, said: str) -> None:
    config = dataclasses.replace(tiny_config().decoder, **changes)
    layers = stack(nnx.Rngs(params=jax.random.key(0)), 2, lambda rngs: DecoderLayer(rngs, config, lora))
    with pytest.raises(InputError, match=f"The fused products do not serve this: .*{said}. Leave them out"):
        one_token(layers, dtype)


def test_a_mesh_is_refused() -> None:
    with pytest.raises(InputError, match="products='triton' runs on one device; leave it out, or the mesh"):
        engine(products="triton", mesh=make_mesh("data=1"))


def test_a_device_without_the_kernels_is_refused_at_once() -> None:
    with pytest.raises(InputError, match=r"products='triton' does not serve this model here.*: .* none for cpu"):
        engine(products="triton")


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({"attention_bias": True}, {"buckets": BUCKETS}, "a product has a bias or adapters"),
        ({}, {"buckets": BUCKETS, "dtype": "bfloat16"}, "weights are float32, computation is bfloat16"),
        ({}, {"buckets": dataclasses.replace(BUCKETS, rows=(4, 17))}, r"up to 17 \(Buckets.rows\): .* not 17"),
    ],
)
def test_a_model_that_is_not_served_is_refused_before_a_prompt_is_read(
    changes: dict[str, Any], options: dict[str, Any], said: str
) -> None:
    config = dataclasses.replace(tiny_config(), sparsity=PLAIN)
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, **changes))
    with pytest.raises(InputError, match=f"products='triton-interpret' does not serve this model here.*{said}"):
        Engine(tiny_model(config), products="triton-interpret", **options)


def test_a_stack_leaves_behind_what_it_does_by_xla() -> None:
    config = tiny_config().decoder
    layers = stack(nnx.Rngs(params=jax.random.key(1)), 3, lambda rngs: DecoderLayer(rngs, config))
    for norm in (layers.attention_norm, layers.mlp_norm):  # every layer another one
        norm.scale[...] = jax.random.uniform(jax.random.key(2), norm.scale.shape, minval=0.5, maxval=2.0)
    hidden = jax.random.normal(jax.random.key(3), (2, 1, config.hidden_size))
    by = rope(config, jnp.array([[3], [7]]))
    repeats = config.num_heads // config.num_kv_heads

    def attend(query: Any, key: Any, value: Any, layer: Any) -> Any:
        return query + layer * jnp.repeat(key * value, repeats, axis=1)

    found = run_fused(Products(interpret=True), layers, hidden, by, attend, trace=True)
    wanted = run_stack(layers, hidden, by, attend, capacity=1, trace=True)
    for name in ("hidden", "key", "value", "trace"):
        one, other = getattr(found, name), getattr(wanted, name)
        assert one.shape == other.shape
        np.testing.assert_allclose(one, other, rtol=0, atol=TOLERANCE * float(jnp.abs(other).max()), err_msg=name)
