"""Rotary embedding against transformers, and where its scalings are plain RoPE."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from dynllava_jax.config.decoder import DecoderConfig, DynamicNtkScaling, LinearScaling, Llama3Scaling
from dynllava_jax.nn.rope import rope, rotate

PLAIN = DecoderConfig(hidden_size=64, num_heads=4, num_kv_heads=4, head_dim=16, max_positions=512, rope_theta=5000.0)
SCALED = [
    (None, {"rope_type": "default"}),
    (LinearScaling(2.5), {"rope_type": "linear", "factor": 2.5}),
    (
        Llama3Scaling(8.0, 1.0, 4.0, 64),
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
]


@pytest.mark.parametrize(("scaling", "theirs"), SCALED)
def test_angles_equal_transformers(scaling: Any, theirs: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=4,
        head_dim=16,
        max_position_embeddings=512,
        rope_parameters={**theirs, "rope_theta": 5000.0},
    )
    positions = np.array([[0, 1, 7, 63, 64, 200, 511]])
    cos, sin = LlamaRotaryEmbedding(config)(torch.zeros(1, 7, 64), torch.tensor(positions))
    ours = rope(dataclasses.replace(PLAIN, rope_scaling=scaling), jnp.asarray(positions))
    np.testing.assert_allclose(ours.cos, cos.numpy(), atol=3e-5)
    np.testing.assert_allclose(ours.sin, sin.numpy(), atol=3e-5)


def test_dynamic_scaling_is_plain_within_the_trained_context() -> None:
    positions = jnp.arange(512)[None]
    dynamic = dataclasses.replace(PLAIN, rope_scaling=DynamicNtkScaling(4.0))
    np.testing.assert_array_equal(rope(dynamic, positions).cos, rope(PLAIN, positions).cos)
    # Beyond it, keys in the cache would have to be turned anew: the context ends there.
    assert dynamic.context == PLAIN.context == 512
    assert dataclasses.replace(PLAIN, rope_scaling=LinearScaling(2.0)).context == 1024


def test_rotation_keeps_lengths_and_depends_on_distance_only() -> None:
    rng = np.random.default_rng(0)
    x, y = (jnp.asarray(rng.standard_normal((1, 1, 1, 16)), jnp.float32) for _ in range(2))

    def product(first: int, second: int) -> float:
        a, b = (rotate(v, rope(PLAIN, jnp.array([[at]]))) for v, at in ((x, first), (y, second)))
        return float(jnp.sum(a * b))

    turned = rotate(x, rope(PLAIN, jnp.array([[100]])))
    np.testing.assert_allclose(jnp.linalg.norm(turned), jnp.linalg.norm(x), rtol=1e-6)
    np.testing.assert_allclose(product(3, 10), product(203, 210), atol=1e-4)
