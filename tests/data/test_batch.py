"""Padding adds nothing but padding."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynllava_jax.data.batch import Batch, make_batch
from dynllava_jax.data.prompt import IMAGE_TOKEN
from dynllava_jax.data.spans import IGNORE, Kind, Sample, expand
from dynllava_jax.errors import InputError

_IDS = st.lists(st.sampled_from([IMAGE_TOKEN, 1, 8, 9, 20]), min_size=1, max_size=12).filter(
    lambda ids: ids.count(IMAGE_TOKEN) <= 3
)


def _sample(ids: list[int], *, labelled: bool = False) -> Sample:
    return expand(ids, [IGNORE, *ids[1:]] if labelled else None, image_tokens=3, round_ids=(8, 9))


def _pictures(count: int, *, value: float = 1.0) -> list[np.ndarray]:
    return [np.full((2, 2, 3), value + index, np.float32) for index in range(count)]


@given(rows=st.lists(st.tuples(_IDS, st.booleans()), min_size=1, max_size=4), spare=st.integers(0, 2))
def test_every_row_is_its_sample_and_padding(rows: list[tuple[list[int], bool]], spare: int) -> None:
    samples = [_sample(ids, labelled=labelled) for ids, labelled in rows]
    images = [_pictures(sample.image_count, value=row) for row, sample in enumerate(samples)]
    slots = max(sample.image_count for sample in samples)
    batch = make_batch(samples, images, length=48, slots=slots, rows=len(rows) + spare)
    assert {array.shape for array in (batch.tokens, batch.kind, batch.positions)} == {(len(rows) + spare, 48)}
    for row, sample in enumerate(samples):
        own, rest = slice(sample.length), slice(sample.length, None)
        np.testing.assert_array_equal(batch.tokens[row, own], sample.tokens)
        np.testing.assert_array_equal(batch.kind[row, own], sample.kind)
        np.testing.assert_array_equal(batch.positions[row, own], np.arange(sample.length))
        assert (batch.kind[row, rest] == Kind.PAD).all()
        assert not batch.tokens[row, rest].any()
        assert not batch.positions[row, rest].any()
        if batch.labels is not None:
            expected = np.full(sample.length, IGNORE) if sample.labels is None else sample.labels
            np.testing.assert_array_equal(batch.labels[row, own], expected)
            assert (batch.labels[row, rest] == IGNORE).all()
        for slot in range(slots):
            assert batch.images is not None
            wanted = images[row][slot] if slot < sample.image_count else 0.0
            assert (batch.images[row, slot] == wanted).all()
    assert (batch.labels is None) == (not any(labelled for _, labelled in rows))
    assert batch.lengths.tolist() == [sample.length for sample in samples] + [0] * spare
    assert batch.image_count.tolist() == [sample.image_count for sample in samples] + [0] * spare
    assert (batch.kind[len(rows) :] == Kind.PAD).all()


def test_a_batch_is_a_pytree() -> None:
    batch = make_batch([_sample([1, -200, 8])], [_pictures(1)], length=8, slots=1, rows=2)
    doubled = jax.jit(lambda b: jax.tree.map(lambda leaf: leaf * 2, b))(batch)
    assert isinstance(doubled, Batch)
    assert doubled.labels is None
    np.testing.assert_array_equal(doubled.tokens, batch.tokens * 2)
    shapes = jax.eval_shape(lambda b: b, batch)
    assert shapes.images.shape == (2, 1, 2, 2, 3)
    assert jax.tree.map(np.shape, batch).tokens == (2, 8)


def test_no_slots_no_pixels() -> None:
    assert make_batch([_sample([1, 8])], [[]], length=4, slots=0, rows=1).images is None


@pytest.mark.parametrize(
    ("ids", "count", "shape", "message"),
    [
        ([1, -200], 2, (8, 2, 1), "Sample 0 has 1 <image> in its text but 2 images"),
        ([1, -200, -200], 2, (8, 1, 1), "Sample 0 has 2 images; this batch has room for 1"),
        ([1, -200], 1, (3, 1, 1), "Sample 0 has 4 tokens; this batch has room for 3"),
        ([1], 0, (8, 1, 1), "needs images of one shape, not none at all"),
        ([1], 0, (8, 0, 0), "A batch of 0 rows got 1 samples"),
    ],
)
def test_what_does_not_fit_is_named(ids: list[int], count: int, shape: tuple[int, int, int], message: str) -> None:
    length, slots, rows = shape
    with pytest.raises(InputError, match=message):
        make_batch([_sample(ids)], [_pictures(count)], length=length, slots=slots, rows=rows)


def test_pictures_of_two_sizes_are_refused() -> None:
    with pytest.raises(InputError, match=r"one shape, not \(2, 2, 3\), \(4, 4, 3\)"):
        make_batch(
            [_sample([1, -200, -200])], [[*_pictures(1), np.zeros((4, 4, 3), np.float32)]], length=8, slots=2, rows=1
        )
