"""Random and stride: independent of neighbours, and as even as they promise.

B batch, M images, N image tokens, T text tokens.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from dynllava_jax.config.sparsity import LinearPredictor
from dynllava_jax.sparsify.baselines import RandomImage, RandomText, StrideImage, StrideText
from dynllava_jax.sparsify.selector import ImageView, Place, SelectorContext, TokenView

SEEDS = np.array([3, 7, 11])


def _context(place: Place, *, rate: float = 0.25) -> SelectorContext:
    return SelectorContext(width=1, count=16, kept=4, keep_rate=rate, predictor=LinearPredictor(), place=place)


def _image_view(seeds: np.ndarray, images: int, count: int = 16, kept: int = 4) -> ImageView:
    shape = (len(seeds), images)
    return ImageView(jnp.zeros((*shape, count, 1)), jnp.ones(shape, bool), None, None, None, None, _keys(seeds), kept)


def _token_view(seeds: np.ndarray, positions: np.ndarray) -> TokenView:
    positions = np.broadcast_to(positions, (len(seeds), positions.shape[-1]))
    return TokenView(jnp.zeros((*positions.shape, 1)), jnp.asarray(positions), _keys(seeds))


def _keys(seeds: np.ndarray) -> jax.Array:
    return jax.vmap(jax.random.key)(jnp.asarray(seeds))


def test_random_image_depends_on_its_own_seed_and_slot_only() -> None:
    selector = RandomImage(nnx.Rngs(params=0), _context("image"))
    together = selector(_image_view(SEEDS, images=4))
    alone = selector(_image_view(SEEDS[2:], images=1))
    np.testing.assert_array_equal(together[2:, :1], alone)
    assert len(np.unique(together)) == together.size
    elsewhere = RandomImage(nnx.Rngs(params=0), _context("tower"))(_image_view(SEEDS, images=4))
    assert not np.any(together == elsewhere)


def test_random_text_depends_on_its_own_seed_and_position_only() -> None:
    selector = RandomText(nnx.Rngs(params=0), _context("output", rate=0.5))
    together = selector(_token_view(SEEDS, np.arange(20)))
    one = selector(_token_view(SEEDS[1:2], np.array([13])))
    np.testing.assert_array_equal(together[1:2, 13:14], one)


@pytest.mark.parametrize("rate", [0.3, 0.5, 1.0])
def test_random_text_keeps_its_rate(rate: float) -> None:
    margin = RandomText(nnx.Rngs(params=0), _context("output", rate=rate))(_token_view(SEEDS, np.arange(1000)))
    assert abs(float(jnp.mean(margin > 0)) - rate) < 0.03


@settings(max_examples=50, deadline=None)
@given(data=st.data(), count=st.integers(1, 576))
def test_stride_image_is_even(data: st.DataObject, count: int) -> None:
    kept = data.draw(st.integers(1, count))
    selector = StrideImage(nnx.Rngs(params=0), _context("image"))
    index = np.flatnonzero(np.asarray(selector(_image_view(SEEDS[:1], 1, count, kept)))[0, 0])
    assert len(index) == kept
    gaps = np.diff(index)
    assert gaps.size == 0 or gaps.max() - gaps.min() <= 1
    assert abs(index[0] - (count - 1 - index[-1])) <= 1


@settings(max_examples=50, deadline=None)
@given(percent=st.integers(1, 100))
def test_stride_text_keeps_its_share_of_every_beginning(percent: int) -> None:
    selector = StrideText(nnx.Rngs(params=0), _context("output", rate=percent / 100))
    kept = np.asarray(selector(_token_view(SEEDS[:1], np.arange(400))))[0] > 0
    np.testing.assert_array_equal(np.cumsum(kept), np.arange(1, 401) * percent // 100)


@pytest.mark.parametrize("kind", [RandomText, StrideText])
def test_a_call_may_ask_for_another_rate(kind: type[RandomText] | type[StrideText]) -> None:
    built = kind(nnx.Rngs(params=0), _context("output", rate=0.75))
    view = _token_view(SEEDS, np.arange(40))
    asked = kind(nnx.Rngs(params=0), _context("output", rate=0.25))(dataclasses.replace(view, keep_rate=0.75))
    np.testing.assert_array_equal(asked > 0, built(view) > 0)


def test_stride_text_far_into_an_answer() -> None:
    selector = StrideText(nnx.Rngs(params=0), _context("output", rate=1 / 3))
    kept = np.asarray(selector(_token_view(SEEDS[:1], 3_000_000 + np.arange(300))))[0] > 0
    assert kept.sum() == 100
