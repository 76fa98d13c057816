"""The few shapes of a run hold every batch, with as little padding as so few can."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynllava_jax.config.data import IMAGE_SLOTS
from dynllava_jax.data.shapes import Shape, assign_shapes, candidate_lengths, choose_shapes, slots_for
from dynllava_jax.errors import InputError

_CANDIDATES = np.array([64, 128, 256])


def _cost(shapes: tuple[Shape, ...], longest: np.ndarray, images: np.ndarray) -> int | None:
    chosen = assign_shapes(longest, images, shapes)
    return None if (chosen < 0).any() else sum(shapes[index].cost for index in chosen)


@settings(deadline=None, max_examples=50)
@given(longest=st.lists(st.integers(1, 256), min_size=1, max_size=12), most=st.integers(1, 4))
def test_no_other_lengths_have_less_padding(longest: list[int], most: int) -> None:
    batches, images = np.array(longest), np.ones(len(longest), np.int64)
    candidates = np.arange(1, 5) * 64
    shapes = choose_shapes(batches, images, candidates, most)
    assert len(set(shapes)) == len(shapes) <= most
    every = [Shape(int(length), 1) for length in candidates]
    others = (_cost(some, batches, images) for size in range(1, most + 1) for some in combinations(every, size))
    assert _cost(shapes, batches, images) == min(cost for cost in others if cost is not None)


@settings(deadline=None, max_examples=50)
@given(
    batches=st.lists(st.tuples(st.integers(1, 256), st.sampled_from(IMAGE_SLOTS)), min_size=1, max_size=12),
    most=st.integers(1, 6),
)
def test_more_shapes_never_cost_more(batches: list[tuple[int, int]], most: int) -> None:
    longest, images = (np.array(column) for column in zip(*batches, strict=True))
    costs = [_cost(choose_shapes(longest, images, _CANDIDATES, allowed), longest, images) for allowed in (1, most, 99)]
    assert costs == sorted((cost for cost in costs if cost is not None), reverse=True)


def test_every_batch_gets_the_cheapest_shape_that_holds_it() -> None:
    shapes = (Shape(128, 0), Shape(128, 1), Shape(64, 2))
    chosen = assign_shapes(np.array([100, 100, 64, 64]), np.array([0, 1, 1, 2]), shapes)
    assert [shapes[index] for index in chosen] == [Shape(128, 0), Shape(128, 1), Shape(64, 2), Shape(64, 2)]


@pytest.mark.parametrize(
    ("given", "longest", "expected"),
    [((), 60, [64]), ((), 130, [64, 128, 192]), ((), 1025, [*range(128, 1153, 128)]), ((100, 300), 250, [100, 300])],
)
def test_candidate_lengths(given: tuple[int, ...], longest: int, expected: list[int]) -> None:
    assert candidate_lengths(given, longest).tolist() == expected


def test_a_sample_beyond_the_given_lengths_is_an_error() -> None:
    with pytest.raises(InputError, match=r"data.lengths ends at 300 but the longest sample has 301 tokens"):
        candidate_lengths((100, 300), 301)


def test_slots() -> None:
    assert [slots_for(images) for images in range(5)] == [0, 1, 2, 4, 4]
    with pytest.raises(InputError, match="5 images; a batch has room for 4"):
        slots_for(5)
