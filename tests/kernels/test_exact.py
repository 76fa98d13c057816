"""Products of float32 numbers in two parts, against float64.

R rows, C columns, E what is summed over.
"""

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dynllava_jax.kernels.exact import Sums, exact

R, C, E = 3, 5, 128
SEEDS, PEAKS = st.integers(0, 999), st.sampled_from((1e-3, 1.0, 30.0, 1e4))


def product(left: jax.Array, right: jax.Array) -> jax.Array:
    return left @ right.T


def rows(seed: int, peak: float) -> tuple[jax.Array, jax.Array, np.ndarray]:
    """Queries, keys of which the second of each pair is nearly the first, and their products in float64."""
    rng = np.random.default_rng(seed)
    keys = rng.standard_normal((C, E)).repeat(2, axis=0)
    keys[1::2] += rng.standard_normal((C, E)) * 0.1 / peak
    left, right = (x.astype(np.float32) for x in (rng.standard_normal((R, E)) * peak, keys))
    return jnp.asarray(left), jnp.asarray(right), left.astype(np.float64) @ right.astype(np.float64).T


@settings(deadline=None)
@given(seed=SEEDS, peak=PEAKS)
def test_leading_parts_add_up_without_rounding(seed: int, peak: float) -> None:
    left, right, truth = rows(seed, peak)
    found = exact(product, left, right, 1, 1)
    assert found.rest is not None
    again = exact(product, left[:, ::-1], right[:, ::-1], 1, 1)
    np.testing.assert_array_equal(found.leading, again.leading)
    np.testing.assert_allclose(found.rounded(), truth, rtol=0, atol=2.0**-23 * np.abs(truth).max())


@settings(deadline=None)
@given(seed=SEEDS, peak=PEAKS)
def test_a_difference_is_not_off_by_what_rounding_its_terms_makes(seed: int, peak: float) -> None:
    left, right, truth = rows(seed, peak)
    found = exact(product, left, right, 1, 1)
    reference = np.asarray(found.rounded())[:, ::2].repeat(2, axis=1)
    wanted = truth - reference.astype(np.float64)
    # What is left of a number is at most 2⁻⁸ of its row's largest; the two sums of such products round in 2⁻²⁴ of them.
    one, other = np.abs(left)[:, None], np.abs(right)[None]
    rest = 2.0**-8 * (one.max(axis=2) * other.sum(axis=2) + one.sum(axis=2) * other.max(axis=2))
    bound = 2.0**-22 * np.abs(wanted) + 2.0**-23 * rest
    np.testing.assert_array_less(np.abs(found.above(reference) - wanted), bound)
    assert np.any(np.abs(product(left, right) - reference - wanted) > bound)


@settings(deadline=None)
@given(seed=SEEDS, peak=PEAKS, parts=st.sampled_from((2, 4)))
def test_parts_of_a_sum_lose_nothing(seed: int, peak: float, parts: int) -> None:
    """Each part's leading numbers are multiples of another power of two."""
    left, right, truth = rows(seed, peak)
    scale = np.repeat(2.0 ** np.arange(parts), E // parts).astype(np.float32)
    left, right = left * scale, right / scale
    whole, *others = (
        exact(product, one, other, 1, 1)
        for one, other in zip(jnp.split(left, parts, axis=1), jnp.split(right, parts, axis=1), strict=True)
    )
    for part in others:
        whole = whole.plus(part)
    double = np.asarray(whole.leading, np.float64) + np.asarray(whole.rest, np.float64)
    large = np.abs(left)[:, None] * np.abs(right)[None]
    np.testing.assert_allclose(double, truth, rtol=0, atol=2.0**-29 * large.sum(axis=2).max())


def test_what_is_not_real_is_that_number_whatever_stands_there() -> None:
    real = np.array([True, False])
    sums = Sums(jnp.asarray([1.0, jnp.nan]), jnp.asarray([0.5, jnp.inf])).where(real, -1e30)
    np.testing.assert_array_equal(sums.rounded(), np.array([1.5, -1e30], np.float32))
    np.testing.assert_array_equal(sums.above(1.0), np.array([0.5, -1e30], np.float32))


def test_shorter_numbers_are_multiplied_as_they_are() -> None:
    left, right = (jnp.ones((R, E), jnp.bfloat16) for _ in range(2))
    found = exact(product, left, right, 1, 1)
    assert found.rest is None
    assert found.rounded() is found.leading
