"""A plan loses and doubles nothing, fits its few shapes, and depends on nothing but its inputs."""

import collections

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynllava_jax.config.data import DataConfig
from dynllava_jax.data.plan import FILLER, RunPlan, make_plan
from dynllava_jax.errors import InputError

_SAMPLES = st.lists(st.tuples(st.integers(1, 500), st.integers(0, 4)), min_size=1, max_size=60)


def _arrays(samples: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths, images = zip(*samples, strict=True)
    return np.array(lengths, np.int32), np.array(images, np.int32)


def _of_epoch(plan: RunPlan, epoch: int) -> list[int]:
    samples = plan.samples[plan.epoch_of == epoch]
    return sorted(samples[samples != FILLER].tolist())


@settings(deadline=None, max_examples=50)
@given(
    samples=_SAMPLES,
    batch=st.sampled_from([1, 4, 8]),
    window=st.integers(1, 4),
    most=st.integers(1, 6),
    epochs=st.integers(1, 3),
    seed=st.integers(0, 3),
)
def test_every_sample_once_an_epoch_in_a_batch_that_holds_it(
    samples: list[tuple[int, int]], batch: int, window: int, most: int, epochs: int, seed: int
) -> None:
    lengths, images = _arrays(samples)
    config = DataConfig(window=window, max_shapes=most, seed=seed)
    plan = make_plan(lengths, images, config, global_batch=batch, epochs=epochs)
    for epoch in range(epochs):
        assert _of_epoch(plan, epoch) == list(range(len(samples)))
    assert len(plan) == epochs * -(-len(samples) // batch)
    assert len({(plan[step].length, plan[step].images) for step in range(len(plan))}) <= most
    tokens = slots = 0
    for step in range(len(plan)):
        planned = plan[step]
        real = planned.samples[planned.samples != FILLER]
        assert planned.samples.shape == (batch,)
        assert lengths[real].max() <= planned.length
        assert images[real].max() <= planned.images
        tokens, slots = tokens + int(lengths[real].sum()), slots + batch * planned.length
    assert plan.padding.planned == pytest.approx(1 - tokens / slots)
    again = make_plan(lengths, images, config, global_batch=batch, epochs=epochs)
    assert again.fingerprint == plan.fingerprint


@settings(deadline=None, max_examples=20)
@given(samples=_SAMPLES, steps=st.integers(1, 12))
def test_a_longer_run_begins_like_a_shorter_one(samples: list[tuple[int, int]], steps: int) -> None:
    lengths, images = _arrays(samples)
    short, long = (make_plan(lengths, images, DataConfig(), global_batch=4, steps=count) for count in (steps, 12))
    assert len(short) == steps
    np.testing.assert_array_equal(short.samples, long.samples[:steps])


@settings(deadline=None, max_examples=50)
@given(
    sizes=st.lists(st.integers(1, 20), min_size=1, max_size=3),
    weights=st.lists(st.sampled_from([0.5, 1.0, 1.25, 2.0]), min_size=3, max_size=3),
)
def test_weights_are_passes_over_a_source(sizes: list[int], weights: list[float]) -> None:
    sources = np.repeat(np.arange(len(sizes)), sizes)
    config = DataConfig(source=("a",) * len(sizes), weights=tuple(weights[: len(sizes)]))
    ones = np.ones(len(sources), np.int32)
    plan = make_plan(ones, ones, config, global_batch=4, epochs=4, sources=sources)
    # After 4 epochs each of these weights has made a whole number of passes.
    drawn = collections.Counter(plan.samples[plan.samples != FILLER].tolist())
    assert drawn == {sample: round(4 * weights[source]) for sample, source in enumerate(sources)}


def test_half_a_source_is_another_half_every_epoch() -> None:
    ones = np.ones(20, np.int32)
    config = DataConfig(source="a", weights=(0.5,))
    plan = make_plan(ones, ones, config, global_batch=5, epochs=2, sources=np.zeros(20, np.int64))
    assert len(_of_epoch(plan, 0)) == 10
    assert sorted(_of_epoch(plan, 0) + _of_epoch(plan, 1)) == list(range(20))


def test_epochs_and_seeds_differ() -> None:
    ones = np.ones(64, np.int32)
    plans = [make_plan(ones, ones, DataConfig(seed=seed), global_batch=64, epochs=2) for seed in (0, 1)]
    orders = {tuple(row) for plan in plans for row in plan.samples.tolist()}
    assert len(orders) == 4


def test_part_of_an_epoch() -> None:
    ones = np.ones(40, np.int32)
    plan = make_plan(ones, ones, DataConfig(), global_batch=4, epochs=1.5)
    assert plan.epoch_of.tolist() == [0] * 10 + [1] * 5


def test_sorting_saves_padding() -> None:
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(5, 1, 4000), 1, 2048).astype(np.int32)
    plan = make_plan(lengths, np.ones_like(lengths), DataConfig(window=16), global_batch=32, epochs=1)
    assert plan.padding.planned < 0.5 * plan.padding.unsorted < plan.padding.one_shape


def test_the_order_is_fixed_for_ever() -> None:
    """A run that goes on with a newer numpy must find the same plan."""
    plan = make_plan(np.arange(1, 11), np.ones(10, np.int64), DataConfig(window=1), global_batch=4, epochs=1)
    assert plan.samples.tolist() == [[-1, 9, 5, -1], [2, 3, 8, 1], [6, 4, 7, 0]]


@pytest.mark.parametrize(
    ("lengths", "images", "options", "message"),
    [
        ([], [], {}, "no sample to train on"),
        ([5], [5], {}, "5 images; a batch has room for 4"),
        ([500], [1], {"lengths": (128, 256)}, "data.lengths ends at 256 but the longest sample has 500 tokens"),
        ([5], [1], {"source": "a", "weights": (0.1,)}, r"data.weights \(0.1,\) over 1 epochs draw no sample"),
    ],
)
def test_what_cannot_be_planned_is_named(lengths: list[int], images: list[int], options: dict, message: str) -> None:
    arrays = np.array(lengths, np.int32), np.array(images, np.int32)
    with pytest.raises(InputError, match=message):
        make_plan(*arrays, DataConfig(**options), global_batch=4, epochs=1, sources=np.zeros(len(lengths), np.int64))


def test_there_is_no_step_beyond_the_last() -> None:
    plan = make_plan(np.ones(3, np.int32), np.ones(3, np.int32), DataConfig(), global_batch=4, epochs=1)
    with pytest.raises(IndexError, match="step 1 of a plan with 1 steps"):
        plan[1]
