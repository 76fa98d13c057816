"""The truth itself, against float64 numpy written out by the formula.

B batch, H query heads, G key/value heads, S queries and keys, T new tokens, C capacity, L layers, E head dimension.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynllava_jax.kernels import xla

TOLERANCE = 2e-6


def arrays(seed: int, *shapes: tuple[int, ...]) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(np.float32) for shape in shapes]


def attend(query: np.ndarray, key: np.ndarray, value: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """One head in float64: query [S, E], key and value [N, E], visible [S, N]."""
    scores = query.astype(np.float64) @ key.astype(np.float64).T / np.sqrt(query.shape[-1])
    scores = np.where(visible, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ value.astype(np.float64)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 1)])
def test_attention_is_causal_with_grouped_heads(heads: int, groups: int) -> None:
    query, key, value = arrays(0, (2, heads, 7, 8), (2, groups, 7, 8), (2, groups, 7, 8))
    out = xla.attention(jnp.asarray(query), jnp.asarray(key), jnp.asarray(value))
    causal = np.tril(np.ones((7, 7), bool))
    for sample in range(2):
        for head in range(heads):
            group = head // (heads // groups)
            wanted = attend(query[sample, head], key[sample, group], value[sample, group], causal)
            np.testing.assert_allclose(out[sample, head], wanted, atol=TOLERANCE)


@settings(max_examples=20, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 9), min_size=2, max_size=2),
    layer=st.integers(0, 2),
    new=st.sampled_from([1, 3]),
)
def test_cached_attention_reads_the_filled_part_of_every_block(lengths: list[int], layer: int, new: int) -> None:
    query, key, value, *cache = arrays(
        1, (2, 4, new, 8), (2, 2, new, 8), (2, 2, new, 8), *[(3, 2, 2, 5, 8)] * 2, *[(3, 2, 2, 4, 8)] * 2
    )
    blocks = [(jnp.asarray(cache[0]), jnp.asarray(cache[1])), (jnp.asarray(cache[2]), jnp.asarray(cache[3]))]
    out = xla.cached_attention(
        jnp.asarray(query), jnp.asarray(key), jnp.asarray(value), blocks, jnp.asarray(layer), jnp.asarray(lengths)
    )
    for sample, held in enumerate(lengths):
        for head in range(4):
            old = [
                np.concatenate([a[layer, sample, head // 2], b[layer, sample, head // 2]])[:held]
                for a, b in ((cache[0], cache[2]), (cache[1], cache[3]))
            ]
            keys = np.concatenate([old[0], key[sample, head // 2]])
            values = np.concatenate([old[1], value[sample, head // 2]])
            visible = np.concatenate([np.ones((new, held), bool), np.tril(np.ones((new, new), bool))], axis=1)
            wanted = attend(query[sample, head], keys, values, visible)
            np.testing.assert_allclose(out[sample, head], wanted, atol=TOLERANCE)


def policy_by_formula(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, policy: np.ndarray, count: int, eps: float
) -> np.ndarray:
    """One head of the policy softmax over the first `count` keys, in float64."""
    query, key, value = (x.astype(np.float64) for x in (query, key, value))
    scores = query @ key.T / np.sqrt(query.shape[-1])
    out = []
    for row in range(count):
        visible = np.arange(count) <= row
        highest = scores[row, :count][visible].max()
        kept = np.where(np.arange(count) == row, 1.0, policy[:count])
        weights = np.where(visible, np.exp(np.where(visible, scores[row, :count] - highest, 0)), 0) * kept
        out.append((weights + eps / count) / (weights.sum() + eps) @ value[:count])
    return np.stack(out)


@pytest.mark.parametrize("eps", [1e-6, 1e-2])
def test_policy_attention_follows_the_formula_and_ignores_padding(eps: float) -> None:
    query, key, value = arrays(2, (2, 4, 9, 8), (2, 2, 9, 8), (2, 2, 9, 8))
    policy = (np.random.default_rng(3).random((2, 9)) < 0.5).astype(np.float32)
    lengths = np.array([9, 6])
    out = xla.policy_attention(*(jnp.asarray(x) for x in (query, key, value, policy, lengths)), eps=eps)
    for sample, count in enumerate(lengths):
        for head in range(4):
            wanted = policy_by_formula(
                query[sample, head], key[sample, head // 2], value[sample, head // 2], policy[sample], count, eps
            )
            np.testing.assert_allclose(out[sample, head, :count], wanted, atol=5e-6)


def test_the_policys_gradients_are_those_of_the_formula_with_its_maximum() -> None:
    """Central differences in float64; without the maximum's own gradient they would be off by about `eps`."""
    query, key, value, cotangent = arrays(7, *[(1, 1, 5, 4)] * 4)
    policy = np.array([1, 0, 1, 0, 1], np.float32)
    key[0, 0, 1] = 2 * query[0, 0, 4]  # the last query likes a dropped key best
    eps, step = 0.1, 1e-5

    def ours(query: jax.Array, key: jax.Array, value: jax.Array, policy: jax.Array) -> jax.Array:
        return jnp.sum(xla.policy_attention(query, key, value, policy, jnp.array([5]), eps=eps) * cotangent)

    def by_formula(*inputs: np.ndarray) -> float:
        query, key, value, policy = inputs
        out = policy_by_formula(query[0, 0], key[0, 0], value[0, 0], policy[0], 5, eps)
        return float(np.sum(out * cotangent[0, 0]))

    inputs = [x.astype(np.float64) for x in (query, key, value, policy[None])]
    gradients = jax.grad(ours, (0, 1, 2, 3))(*(jnp.asarray(x, jnp.float32) for x in inputs))
    for number, gradient in enumerate(gradients):
        wanted = np.zeros_like(inputs[number])
        for place in np.ndindex(wanted.shape):
            moved = [[x.copy() for x in inputs] for _ in range(2)]
            moved[0][number][place] += step
            moved[1][number][place] -= step
            wanted[place] = (by_formula(*moved[0]) - by_formula(*moved[1])) / (2 * step)
        np.testing.assert_allclose(gradient, wanted, atol=1e-5)


def test_policy_of_ones_without_leak_is_causal_attention() -> None:
    query, key, value = (jnp.asarray(x) for x in arrays(4, (1, 2, 8, 8), (1, 2, 8, 8), (1, 2, 8, 8)))
    plain = xla.attention(query, key, value)
    policy = xla.policy_attention(query, key, value, jnp.ones((1, 8)), jnp.array([8]), eps=0.0)
    np.testing.assert_allclose(plain, policy, atol=TOLERANCE)


@pytest.mark.parametrize("eps", [1e-6, 0.0])
@pytest.mark.parametrize("kept", [1.0, 0.0])
def test_gradients_of_padding_rows_are_finite_and_zero(kept: float, eps: float) -> None:
    query, key, value = (jnp.asarray(x) for x in arrays(5, (2, 2, 6, 8), (2, 2, 6, 8), (2, 2, 6, 8)))
    lengths = jnp.array([4, 0])

    def loss(query: jax.Array, key: jax.Array, value: jax.Array, policy: jax.Array) -> jax.Array:
        out = xla.policy_attention(query, key, value, policy, lengths, eps=eps)
        return jnp.sum(jnp.where((jnp.arange(6) < lengths[:, None])[:, None, :, None], out, 0.0))

    for gradient in jax.grad(loss, (0, 1, 2, 3))(query, key, value, jnp.full((2, 6), kept)):
        assert np.isfinite(gradient).all()
    gradient = jax.grad(loss, 1)(query, key, value, jnp.full((2, 6), kept))
    assert not np.any(gradient[0, :, 4:])
    assert not np.any(gradient[1])


def test_query_weights_are_those_of_attention() -> None:
    query, key = arrays(6, (2, 4, 7, 8), (2, 2, 7, 8))
    full = xla.attention_weights(jnp.asarray(query), jnp.asarray(key)).reshape(2, 4, 7, 7)
    at = np.array([6, 3])
    own = xla.query_weights(jnp.asarray(query[np.arange(2), :, at]), jnp.asarray(key), jnp.asarray(at + 1))
    np.testing.assert_allclose(own, full[np.arange(2), :, at], atol=TOLERANCE)


def test_the_lowest_denominator_is_that_of_the_weights() -> None:
    query, key = arrays(5, (2, 4, 9, 8), (2, 2, 9, 8))
    lengths, eps = np.array([9, 6]), 1e-3
    policy = np.ones((2, 9), np.float32)
    policy[0, 2], key[0, :, 2] = 0, 4 * query[0, ::2, 8]  # the last query likes a dropped key best
    arguments = [jnp.asarray(x) for x in (query, key, policy, lengths)]
    found = float(xla.lowest_denominator(*arguments, eps=eps))
    least = np.inf
    for sample, count in enumerate(lengths):
        for head in range(4):
            scores = query[sample, head].astype(np.float64) @ key[sample, head // 2].astype(np.float64).T / np.sqrt(8)
            for row in range(count):
                seen = np.exp(scores[row, : row + 1] - scores[row, : row + 1].max())
                kept = np.where(np.arange(row + 1) == row, 1.0, policy[sample, : row + 1])
                least = min(least, (seen * kept).sum() + eps)
    assert found == pytest.approx(least, rel=1e-5)
    assert found < 0.1
