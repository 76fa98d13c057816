"""Straight-through decisions, and noise that nothing but the token itself decides."""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from dynllava_jax.sparsify.gumbel import gumbel_noise, straight_through

LOGITS = npst.arrays(np.float32, (5, 2), elements=st.floats(-9, 9, width=32))


@settings(deadline=None, max_examples=30)
@given(LOGITS, LOGITS, st.floats(0.1, 2.0))
def test_the_value_is_the_hard_choice_and_the_gradient_the_soft_one(logits, noise, tau):
    noisy = (jax.nn.log_softmax(logits) + noise) / tau
    keep = straight_through(jnp.asarray(logits), jnp.asarray(noise), tau)
    clear = np.abs(noisy[:, 0] - noisy[:, 1]) > 1e-5
    np.testing.assert_allclose(keep[clear], (noisy[:, 0] > noisy[:, 1])[clear], atol=2e-7)

    def soft(logits):
        return jnp.sum(jax.nn.softmax((jax.nn.log_softmax(logits) + noise) / tau)[:, 0])

    gradient = jax.grad(lambda x: jnp.sum(straight_through(x, jnp.asarray(noise), tau)))(jnp.asarray(logits))
    np.testing.assert_allclose(gradient, jax.grad(soft)(jnp.asarray(logits)), atol=1e-6)


def test_noise_depends_on_sample_place_and_token_alone():
    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    index = jnp.broadcast_to(jnp.arange(6), (3, 6))
    noise = gumbel_noise(keys, 2, index)
    np.testing.assert_array_equal(gumbel_noise(keys[1:2], 2, index[1:2, 2:4]), noise[1:2, 2:4])
    assert not np.any(gumbel_noise(keys, 3, index) == noise)
    assert len(np.unique(noise)) == noise.size


def test_noise_has_the_gumbel_distribution():
    keys = jax.vmap(jax.random.key)(jnp.arange(8))
    noise = np.asarray(gumbel_noise(keys, 0, jnp.broadcast_to(jnp.arange(2000), (8, 2000))))
    assert abs(noise.mean() - np.euler_gamma) < 0.03
    assert abs(noise.std() - np.pi / np.sqrt(6)) < 0.03
