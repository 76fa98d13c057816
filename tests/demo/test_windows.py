"""Windows of crowded pictures: what their masks say is there, and nothing that belongs to the test split."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dynllava_jax.demo.catalogue import BACKGROUNDS, OBJECTS
from dynllava_jax.demo.render import photograph
from dynllava_jax.demo.scenes import allowed
from dynllava_jax.demo.windows import draw_window

SIDE = 112


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), top=st.integers(0, 224), left=st.integers(0, 224))
def test_a_window_holds_only_combinations_of_the_training_split(seed: int, top: int, left: int) -> None:
    window = draw_window(np.random.default_rng(seed), top, left, SIDE)
    again = draw_window(np.random.default_rng(seed), top, left, SIDE)
    assert window.picture.size == (SIDE, SIDE)
    assert np.array_equal(np.asarray(window.picture), np.asarray(again.picture))
    assert 1 <= len(window.things) <= 3
    assert set(np.unique(window.mask)) <= set(range(len(window.things) + 1))
    background = BACKGROUNDS.index(window.background)
    for thing in window.things:
        assert allowed("train")[OBJECTS.index(thing.thing), background, thing.place]
        cells = {
            y // 168 * 3 + x // 112
            for y in range(top, top + SIDE, SIDE - 1)
            for x in range(left, left + SIDE, SIDE - 1)
        }
        assert thing.place in cells


def test_where_the_mask_is_zero_the_photograph_is_seen() -> None:
    window = draw_window(np.random.default_rng(3), 0, 0, SIDE)
    free = window.mask == 0
    seen = {tuple(pixel) for pixel in np.asarray(photograph(window.background)).reshape(-1, 3).tolist()}
    pixels = np.asarray(window.picture)[free].tolist()
    assert sum(tuple(pixel) in seen for pixel in pixels) > 0.9 * len(pixels)  # edges of things are half transparent
