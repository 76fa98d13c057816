"""The cache: bytes follow what is kept, growth in the middle of an answer is not seen, dropped tokens cost nothing.

B batch, L layers, G key/value heads, T new tokens, C capacity, E head dimension.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynllava_jax.config.presets import dynamic_llava_7b
from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.data.batch import make_batch
from dynllava_jax.data.spans import expand
from dynllava_jax.inference.buckets import Buckets, Shape, output_rate
from dynllava_jax.inference.cache import Block, StackCache
from dynllava_jax.inference.decode import DecodeState
from dynllava_jax.inference.engine import Engine
from dynllava_jax.inference.run import Prepared, asked_of
from dynllava_jax.inference.sampling import GREEDY
from dynllava_jax.testing import tiny_config, tiny_model

# What is asked for: capacities.

LARGE = dynamic_llava_7b()
DEFAULT = Buckets().within(LARGE.decoder.context)
SPARSE = LARGE.sparsity
DENSE = SPARSE.dense()


@pytest.mark.parametrize("sparsity", [SPARSE, DENSE], ids=["sparse", "dense"])
@pytest.mark.parametrize("prompt", [640, 1000, 1500])
def test_deep_bytes_follow_the_kept_tokens(prompt: int, sparsity: SparsityConfig) -> None:
    """Answers of 1K to what the context leaves, of which as much stays as expected, at any length they end at."""
    config = dataclasses.replace(LARGE, sparsity=sparsity)
    rate = output_rate(config)
    opened = prompt - (config.image_tokens - config.kept_image_tokens)
    for answer in range(1024, config.decoder.context - prompt + 1):
        shape = DEFAULT.shape(config, [prompt], [1], answer)
        kept = opened + int(rate * answer)
        needed = next(size for size in shape.deep_capacities(rate) if size >= kept)
        assert needed <= 1.3 * kept, f"{needed} slots for {kept} tokens after {answer} of {shape}"


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 4096), st.integers(1, 8192), st.floats(0.01, 1.0))
def test_capacities_are_few_and_end_where_everything_fits(deep: int, answer: int, rate: float) -> None:
    capacities = list(Shape(1, 1, deep, deep, answer).deep_capacities(rate))
    assert len(capacities) <= 8
    assert capacities[0] >= deep
    assert capacities[-1] == deep + answer
    assert capacities == sorted(set(capacities))
    assert all(size % 128 == 0 for size in capacities[:-1])


def test_growing_copies_nothing() -> None:
    """The blocks that are there are passed on; the peak is what is allocated afterwards."""
    shape = (2, 2, 2, 256, 64)
    cache = StackCache((Block(jnp.zeros(shape), jnp.zeros(shape)),), jnp.zeros(2, jnp.int32))
    memory = jax.jit(lambda cache: cache.grow(384), donate_argnums=0).lower(cache).compile().memory_analysis()
    added = cache.nbytes // 2
    assert memory is not None
    assert memory.alias_size_in_bytes >= cache.nbytes
    assert memory.temp_size_in_bytes < 0.01 * cache.nbytes
    assert memory.output_size_in_bytes - memory.alias_size_in_bytes <= 1.01 * added


# What the blocks hold, against lists.

L, B, G, E = 2, 3, 1, 1


def cache_of(capacity: int) -> StackCache:
    empty = jnp.full((L, B, G, capacity, E), -1.0)
    return StackCache((Block(empty, empty),), jnp.zeros(B, jnp.int32))


def numbers(tokens: np.ndarray) -> Any:
    """Keys [L, B, G, T, E] that say whose they are: token number plus a hundredth of the layer."""
    layers = np.arange(L)[:, None, None, None, None] / 100
    return jnp.asarray(np.broadcast_to(tokens[None, :, None, :, None] + layers, (L, B, G, tokens.shape[1], E)))


def held(cache: StackCache) -> list[np.ndarray]:
    """Keys [L, C] of each sample, up to its length; values are the negated keys."""
    keys = np.concatenate([block.key for block in cache.blocks], axis=3)[:, :, 0, :, 0]
    values = np.concatenate([block.value for block in cache.blocks], axis=3)[:, :, 0, :, 0]
    lengths = np.asarray(cache.length)
    rows = [keys[:, row, : lengths[row]] for row in range(B)]
    for row in range(B):
        np.testing.assert_array_equal(values[:, row, : lengths[row]], -rows[row])
    return rows


append = jax.jit(StackCache.append)
grow = jax.jit(StackCache.grow, static_argnums=1)
repack = jax.jit(StackCache.repack, static_argnums=1)

KEEP = st.sampled_from([1, 3]).flatmap(
    lambda count: st.lists(st.lists(st.booleans(), min_size=count, max_size=count), min_size=B, max_size=B)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(KEEP, max_size=8), st.booleans())
def test_a_cache_is_a_list_per_sample(steps: list[list[list[bool]]], shrink: bool) -> None:
    cache, wanted, next_token = cache_of(4), [[] for _ in range(B)], 0
    for keep in steps:
        count = len(keep[0])
        tokens = next_token + np.arange(count) + 1000.0 * np.arange(B)[:, None]
        next_token += count
        longest = max(len(row) for row in wanted) + count
        while cache.capacity < longest:
            cache = grow(cache, cache.capacity + 4)
        cache = append(cache, numbers(tokens), -numbers(tokens), jnp.asarray(keep))
        for row in range(B):
            wanted[row] += [tokens[row, at] for at in range(count) if keep[row][at]]
    if shrink or len(cache.blocks) == 1:
        cache = repack(cache, 28)
        assert len(cache.blocks) == 1
        assert cache.capacity == 28
    for row, keys in enumerate(held(cache)):
        np.testing.assert_allclose(keys, [[token + layer / 100 for token in wanted[row]] for layer in range(L)])
    assert np.asarray(cache.length).tolist() == [len(row) for row in wanted]


def test_nothing_is_written_beyond_the_capacity() -> None:
    """What does not fit is not written over something else."""
    cache = cache_of(2)
    tokens = np.arange(3.0) + np.zeros((B, 1))
    keep = np.array([[True] * 3, [True, False, True], [False] * 3])
    cache = append(cache, numbers(tokens), -numbers(tokens), jnp.asarray(keep))
    keys = np.asarray(cache.blocks[0].key)[0, :, 0, :, 0]
    np.testing.assert_array_equal(keys, [[0, 1], [0, 2], [-1, -1]])
    again = append(cache, numbers(tokens + 7), -numbers(tokens + 7), jnp.asarray(keep))
    np.testing.assert_array_equal(np.asarray(again.blocks[0].key)[0, :, 0, :, 0], keys)


# What an answer does to it.

CONFIG = tiny_config()
BUCKETS = Buckets(rows=(3,), images=(1,), length=(64,), answer=(320,), instruction=(32,), segment=40)
SHAPE = Shape(rows=3, images=1, length=64, deep_length=64, answer=320)
BUDGETS = (320, 25, 150)


class Grown(Shape):
    """Starts as small as can be and takes small steps."""

    def deep_capacities(self, keep_rate: float) -> tuple[int, ...]:
        return (*range(self.deep_length, self.deep_length + self.answer, 96), self.deep_length + self.answer)


class Whole(Shape):
    """Never grows."""

    def deep_capacities(self, keep_rate: float) -> tuple[int, ...]:
        return (self.deep_length + self.answer,)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine(tiny_model(), buckets=BUCKETS)


@dataclasses.dataclass
class Course:
    """One batch of answers, segment by segment; every list has an entry per look at the device.

    Attributes:
        tokens, keep: of all segments, side by side.
        lengths: [shallow, deep] of each sample, at the start too.
        done: at the start too.
        capacity: of the deep cache.
        state: at the end.
    """

    tokens: np.ndarray
    keep: np.ndarray
    lengths: list[np.ndarray]
    done: list[np.ndarray]
    capacity: list[int]
    state: DecodeState


def run(engine: Engine, shape: Shape) -> Course:
    prompts = [prompt(row) for row in range(shape.rows)]
    batch = make_batch([one.sample for one in prompts], [one.pixels for one in prompts], length=64, slots=1, rows=3)
    state, _ = engine.open(batch, asked_of(prompts, 3), shape, CONFIG.sparsity)
    tokens, keep, lengths, done, capacity = [], [], [_lengths(state)], [np.asarray(state.done)], []
    capacity.append(state.cache.deep.capacity)
    while not done[-1].all():
        state, out = engine.advance(state, shape, CONFIG.sparsity)
        tokens.append(np.asarray(out.tokens)[:, : int(out.steps)])
        keep.append(np.asarray(out.keep)[:, : int(out.steps)])
        lengths.append(_lengths(state))
        done.append(np.asarray(state.done))
        capacity.append(state.cache.deep.capacity)
    return Course(np.concatenate(tokens, 1), np.concatenate(keep, 1), lengths, done, capacity, state)


def prompt(row: int) -> Prepared:
    rng = np.random.default_rng(row)
    ids = rng.integers(3, 500, 20 + 7 * row).tolist()
    ids.insert(5 * row, -200)
    sample = expand(ids, None, image_tokens=CONFIG.image_tokens, round_ids=())
    pixels = [rng.standard_normal((56, 56, 3)).astype(np.float32)]
    return Prepared(sample, pixels, BUDGETS[row], GREEDY, row)


def _lengths(state: DecodeState) -> np.ndarray:
    return np.asarray([state.cache.shallow.length, state.cache.deep.length])


@pytest.fixture(scope="module")
def grown(engine: Engine) -> Course:
    return run(engine, Grown(**dataclasses.asdict(SHAPE)))


def test_growing_in_the_middle_of_an_answer_is_not_seen(engine: Engine, grown: Course) -> None:
    whole = run(engine, Whole(**dataclasses.asdict(SHAPE)))
    assert len(set(grown.capacity)) >= 3
    assert len(set(whole.capacity)) == 1
    np.testing.assert_array_equal(grown.tokens, whole.tokens)
    np.testing.assert_array_equal(grown.keep, whole.keep)
    np.testing.assert_array_equal(grown.lengths[-1], whole.lengths[-1])
    ours, theirs = joined(grown), joined(whole)
    for row, length in enumerate(whole.lengths[-1][1]):
        np.testing.assert_allclose(ours[:, row, :, :length], theirs[:, row, :, :length], atol=2e-5)


def joined(course: Course) -> np.ndarray:
    return np.concatenate([block.key for block in course.state.cache.deep.blocks], axis=3)


def test_a_dropped_token_costs_nothing(grown: Course) -> None:
    added = grown.lengths[-1] - grown.lengths[0]
    np.testing.assert_array_equal(added[0], np.sum(grown.keep >= 0, axis=1))
    np.testing.assert_array_equal(added[1], np.sum(grown.keep == 1, axis=1))
    dropped = np.sum(grown.keep == 0, axis=1)
    assert np.all(dropped > 0.2 * np.sum(grown.keep >= 0, axis=1))
    assert grown.capacity[-1] < SHAPE.deep_length + SHAPE.answer


def test_lengths_never_pass_the_capacity(grown: Course) -> None:
    for lengths, capacity in zip(grown.lengths, grown.capacity, strict=True):
        assert lengths[1].max() <= capacity
        assert lengths[0].max() <= SHAPE.shallow_capacity


def test_a_finished_answer_stands_still(grown: Course) -> None:
    np.testing.assert_array_equal(np.sum(grown.keep >= 0, axis=1), np.array(BUDGETS) - 1)
    for row in range(len(BUDGETS)):
        ended = next(look for look, done in enumerate(grown.done) if done[row])
        for lengths in grown.lengths[ended:]:
            np.testing.assert_array_equal(lengths[:, row], grown.lengths[ended][:, row])


@pytest.mark.slow
def test_a_stop_token_ends_one_answer_and_leaves_its_neighbours_alone(grown: Course) -> None:
    """The stop token itself is never stored; the neighbours' answers are what they were."""
    stop = next(int(token) for token in grown.tokens[2, 5:] if token not in grown.tokens[0])
    at = grown.tokens[2].tolist().index(stop)
    course = run(Engine(tiny_model(), buckets=BUCKETS, stop_ids=(stop,)), Whole(**dataclasses.asdict(SHAPE)))
    np.testing.assert_array_equal(course.tokens[0], grown.tokens[0])
    np.testing.assert_array_equal(course.tokens[2, : at + 1], grown.tokens[2, : at + 1])
    assert np.all(course.keep[2, at + 1 :] == -1)
    assert course.lengths[-1][0, 2] == course.lengths[0][0, 2] + at + 1
