"""Drawing the next token, against distributions written out in numpy.

B batch, V vocabulary.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynllava_jax.data.spans import expand
from dynllava_jax.errors import InputError
from dynllava_jax.inference.run import Prepared, asked_of
from dynllava_jax.inference.sampling import GREEDY, Draws, Sampler, Temperature, TopK, TopP, as_numbers, draw

LOGITS = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0], np.float32)


def softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max())
    return weights / weights.sum()


def wanted(sampler: Sampler) -> np.ndarray:
    """The distribution that a sampler draws from."""
    temperature, k, p = as_numbers(sampler)
    if temperature == 0:
        return np.eye(len(LOGITS))[LOGITS.argmax()]
    scaled = LOGITS / temperature
    order = np.argsort(-scaled, kind="stable")
    kept = order[: k or len(order)]
    cut = softmax(np.where(np.isin(np.arange(len(scaled)), kept), scaled, -np.inf))
    before = np.cumsum(cut[order]) - cut[order]
    kept = order[(before < p) & (cut[order] > 0)]
    return softmax(np.where(np.isin(np.arange(len(scaled)), kept), scaled, -np.inf))


def draws(samplers: list[Sampler], seeds: list[int]) -> Draws:
    temperature, k, p = zip(*map(as_numbers, samplers), strict=True)
    keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
    return Draws(jnp.asarray(temperature), jnp.asarray(k), jnp.asarray(p), keys)


sample = jax.jit(draw)


@pytest.mark.parametrize(
    "sampler",
    [GREEDY, Temperature(1.0), Temperature(2.5), TopK(2), TopK(3, 0.7), TopP(0.6), TopP(0.9, 1.5, 4), TopK(99)],
)
def test_frequencies_follow_the_distribution(sampler: Sampler) -> None:
    rows = 4096
    tokens = sample(jnp.tile(LOGITS, (rows, 1)), draws([sampler] * rows, list(range(rows))), jnp.zeros(rows, jnp.int32))
    frequencies = np.bincount(np.asarray(tokens), minlength=len(LOGITS)) / rows
    probabilities = wanted(sampler)
    np.testing.assert_allclose(frequencies, probabilities, atol=0.035)
    assert not np.any(frequencies[probabilities == 0])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(0, 5000), row=st.integers(0, 3))
def test_a_draw_depends_on_its_own_seed_and_count_only(seed: int, count: int, row: int) -> None:
    mine = draws([Temperature(1.0)] * 4, [1, 2, 3, 4])
    logits = jnp.tile(LOGITS, (4, 1))
    seeds, counts = [1, 2, 3, 4], np.arange(4)
    seeds[row], counts[row] = seed, count
    among = sample(logits, draws([Temperature(1.0)] * 4, seeds), jnp.asarray(counts, jnp.int32))[row]
    others = [seed if place == row else 77 + place for place in range(4)]
    elsewhere = sample(logits, mine._replace(key=draws([GREEDY] * 4, others).key), jnp.full(4, count, jnp.int32))[row]
    assert int(among) == int(elsewhere)


def test_greedy_beside_a_drawn_sample_and_ties() -> None:
    tied = np.array([1.0, 3.0, 3.0, 0.0], np.float32)
    tokens = sample(jnp.tile(tied, (2, 1)), draws([GREEDY, TopK(1)], [0, 0]), jnp.zeros(2, jnp.int32))
    assert int(tokens[0]) == 1  # the lower index wins
    assert int(tokens[1]) in (1, 2)


@pytest.mark.parametrize(
    ("extreme", "same"),
    [
        (TopP(1e-50), TopK(1)),
        (TopP(1e-50, k=3), TopK(1)),
        (TopK(2**40), Temperature(1.0)),
        (Temperature(1e-50), GREEDY),
        (Temperature(1e300), Temperature(1e38)),
    ],
    ids=str,
)
def test_what_32_bits_cannot_hold_means_what_it_says(extreme: Sampler, same: Sampler) -> None:
    def drawn(sampler: Sampler) -> jax.Array:
        nothing = expand([1], None, image_tokens=1, round_ids=())
        asked = asked_of([Prepared(nothing, (), 1, sampler, seed) for seed in range(64)], rows=64)
        keys = jax.vmap(jax.random.key)(asked.seed)
        logits = jnp.tile(LOGITS[::-1], (64, 1))
        return sample(logits, Draws(asked.temperature, asked.k, asked.p, keys), jnp.zeros(64, jnp.int32))

    np.testing.assert_array_equal(drawn(extreme), drawn(same))


@pytest.mark.parametrize(
    "make",
    [lambda: Temperature(0.0), lambda: TopK(0), lambda: TopP(0.0), lambda: TopP(1.5), lambda: TopP(0.5, k=0)],
)
def test_impossible_samplers_are_refused(make) -> None:
    with pytest.raises(InputError):
        make()
