"""2-D pooling against adaptive average pooling written out, and what it does where no square fits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from dynllava_jax.config.sparsity import LinearPredictor
from dynllava_jax.errors import InputError
from dynllava_jax.sparsify.pooling import PoolImage, cells
from dynllava_jax.sparsify.selector import ImageView, Merged, SelectorContext, check_result, load_selector


def context(count: int, kept: int) -> SelectorContext:
    return SelectorContext(3, count, kept, kept / count, LinearPredictor(), "embed")


def pooled(side: int, kept: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of two samples with two images, what they are pooled to, and the places."""
    features = np.random.default_rng(0).standard_normal((2, 2, side * side, 3)).astype(np.float32)
    view = ImageView(
        jnp.asarray(features), jnp.ones((2, 2), bool), None, None, None, None, jax.random.split(jax.random.key(0), 2)
    )
    selector = load_selector("pool", context(side * side, kept), nnx.Rngs(params=0))
    merged = check_result(selector, context(side * side, kept), view)
    assert isinstance(merged, Merged)
    return features, np.asarray(merged.tokens), np.asarray(merged.index)


@pytest.mark.parametrize(("side", "out"), [(24, 12), (24, 10), (6, 4), (4, 4), (5, 1)])
def test_squares_are_adaptive_average_pooling(side: int, out: int) -> None:
    features, tokens, _ = pooled(side, out * out)
    grid, place = features.reshape(2, 2, side, side, 3), 0
    for i in range(out):
        for j in range(out):
            rows = slice(i * side // out, -(-(i + 1) * side // out))
            columns = slice(j * side // out, -(-(j + 1) * side // out))
            np.testing.assert_allclose(tokens[:, :, place], grid[:, :, rows, columns].mean((2, 3)), atol=1e-6)
            place += 1


def test_half_the_side_is_the_mean_of_two_by_two() -> None:
    features, tokens, index = pooled(4, 4)
    np.testing.assert_allclose(tokens[1, 0, 3], features[1, 0, [10, 11, 14, 15]].mean(0), atol=1e-6)
    assert index[0, 0].tolist() == [0, 2, 8, 10]


@settings(max_examples=40, deadline=None)
@given(data=st.data(), side=st.integers(1, 24))
def test_every_count_uses_every_token_once_or_on_a_border(data: st.DataObject, side: int) -> None:
    kept = data.draw(st.integers(1, side * side))
    weights, index = cells(side * side, kept)
    assert weights.shape == (kept, side * side)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
    assert (weights > 0).any(0).all()
    assert (np.diff(index) > 0).all()
    assert all(weights[cell, token] > 0 for cell, token in enumerate(index))


def test_the_papers_count() -> None:
    """115 of 576: eleven rows of ten or eleven cells."""
    weights, index = cells(576, 115)
    assert np.unique(index // 24, return_counts=True)[1].tolist() == [10, 10, 11, 10, 11, 10, 11, 10, 11, 10, 11]
    assert ((weights > 0).sum(1) <= 16).all()


def test_no_square_grid() -> None:
    with pytest.raises(InputError, match="square grid of image tokens, not 115"):
        PoolImage(nnx.Rngs(params=0), context(115, 20))
