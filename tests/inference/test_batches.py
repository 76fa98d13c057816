"""A batch is a way to go faster and nothing else: every sample gets what it would get alone."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.inference.buckets import Buckets, Shape
from dynllava_jax.inference.engine import Engine
from dynllava_jax.inference.run import Prepared, Run
from dynllava_jax.inference.sampling import Temperature, TopK, TopP
from dynllava_jax.testing import tiny_model
from tests.inference.random_batches import (
    ALONE,
    INSTRUCTED,
    PLAIN,
    SHAPES,
    TOLERANCE,
    Figures,
    compare,
    excuse,
    make_engine,
    margins,
    prompt,
    run,
)


@pytest.fixture(scope="module")
def engine() -> Engine:
    return make_engine()


@pytest.mark.slow
def test_fifty_random_batches(engine: Engine) -> None:
    figures, rng = Figures(), np.random.default_rng(0)
    for _ in range(50):
        compare(engine, rng, figures)
    print(figures)
    assert figures.exempted <= 0.001 * figures.samples
    assert 0.2 < figures.stored / figures.decisions < 0.8


def test_selection_differs_from_sample_to_sample(engine: Engine) -> None:
    rng, shape = np.random.default_rng(1), ALONE[1]
    outcomes = [run(engine, [prompt(rng, 20, 1)], shape, PLAIN)[0] for _ in range(8)]
    assert len({tuple(outcome.kept[0]) for outcome in outcomes}) == 8
    assert sum({0, 1} == set(outcome.keep) for outcome in outcomes) > 4


def test_attention_may_be_named_by_a_list(engine: Engine) -> None:
    """What a program is compiled for must be hashable, and a list is not."""
    one = prompt(np.random.default_rng(3), 20)
    options: dict[str, Any] = {"buckets": engine.buckets, "stop_ids": engine.stop_ids, "collect_logits": True}
    other = Engine(engine.model, attention=["chunked", "xla"], **options)
    [alone], [ours] = (run(each, [one], ALONE[0], PLAIN) for each in (engine, other))
    assert ours.tokens == alone.tokens


def test_the_excuse_of_a_near_tie_knows_every_decision(engine: Engine) -> None:
    """One pass over prompt and answer finds the margins behind the decisions that decoding made."""
    one = prompt(np.random.default_rng(9), 20, 1)
    [alone] = run(engine, [one], ALONE[1], PLAIN)
    margin = margins(engine, one, alone.tokens[:-1], PLAIN)
    np.testing.assert_array_equal(margin[1:] > 0, np.array(alone.keep) == 1)
    assert margin[0] > 0  # of the patches
    swapped = dataclasses.replace(alone, keep=[1 - alone.keep[0], *alone.keep[1:]])
    with pytest.raises(AssertionError, match="at a margin of"):
        excuse(engine, one, PLAIN, swapped, alone)


@pytest.mark.slow
def test_a_full_length_text_beside_images(engine: Engine) -> None:
    """The deep length follows the sample that keeps most, here the one that has nothing to drop."""
    shape, sparsity = SHAPES[3]
    rng = np.random.default_rng(2)
    same(engine, [prompt(rng, 96), prompt(rng, 10, 1), prompt(rng, 64, 2), prompt(rng, 1, 1)], shape, sparsity)


def test_the_instruct_predictor_drops_what_the_plain_model_keeps(engine: Engine) -> None:
    one = prompt(np.random.default_rng(3), 60, 1)
    held = [finish(engine, [one], sparsity).held[0]["deep"] for sparsity in (INSTRUCTED, PLAIN)]
    assert held[0] < held[1]


def test_internal_padding_changes_nothing(engine: Engine) -> None:
    one = prompt(np.random.default_rng(4), 20, 1)
    [small], [large] = (run(engine, [one], shape, PLAIN) for shape in (SHAPES[0][0], ALONE[2]))
    assert (small.tokens, small.keep, small.kept) == (large.tokens, large.keep, large.kept)
    np.testing.assert_allclose(small.logits, large.logits, atol=TOLERANCE * max(1, np.abs(large.logits).max()))


@pytest.mark.parametrize("sampler", [Temperature(), TopK(8), TopP(0.95, temperature=1.3)])
def test_a_sampled_answer_depends_on_its_own_seed_alone(engine: Engine, sampler: Temperature | TopK | TopP) -> None:
    rng, (shape, sparsity) = np.random.default_rng(5), SHAPES[2]
    one = prompt(rng, 12, 1, sampler=sampler)
    other = dataclasses.replace(one, seed=one.seed ^ 1)
    first = run(engine, [one, prompt(rng, 30, 0)], shape, sparsity)[0]
    second = run(engine, [other, prompt(rng, 9, 1, sampler=Temperature()), one], shape, sparsity)
    assert second[2].tokens == first.tokens
    assert second[0].tokens != first.tokens


@pytest.mark.parametrize(
    "sparsity",
    [
        PLAIN,
        pytest.param(INSTRUCTED, marks=pytest.mark.slow),
        pytest.param(dataclasses.replace(INSTRUCTED, output_selector=None), marks=pytest.mark.slow),
    ],
)
def test_without_cache_the_answers_are_the_same(engine: Engine, sparsity: SparsityConfig) -> None:
    """The threshold rule sees each answer token alone, as the cached decode does."""
    rng = np.random.default_rng(6)
    prompts = [prompt(rng, text, images, 12) for text, images in [(9, 1), (30, 0), (14, 2), (25, 1)]]
    cached = finish(engine, prompts, sparsity)
    uncached = finish(engine, prompts, sparsity, use_cache=False)
    assert cached.tokens == uncached.tokens
    assert cached.fed == uncached.fed
    assert cached.kept == uncached.kept
    wanted = {1} if sparsity.output_selector is None else {0, 1}
    assert wanted == {keep for row in cached.fed for keep in row}


def test_without_cache_a_long_prompt_and_a_long_answer_share_a_batch(engine: Engine) -> None:
    """Each needs room for its own answer only: 480 + 20 and 20 + 400 of a context of 512."""
    rng = np.random.default_rng(7)
    prompts = [prompt(rng, 480, budget=20), prompt(rng, 20, budget=400)]
    assert Run.open(engine, prompts, PLAIN, use_cache=False).shape.length == 512


def test_no_images_need_no_size_of_their_own() -> None:
    """Whatever sizes a batch's images are padded to, there may be none."""
    only_two = Buckets(rows=(1,), images=(2,), length=(96,), answer=(24,), instruction=(32,), segment=24)
    run = Run.open(Engine(tiny_model(), buckets=only_two), [prompt(np.random.default_rng(9), 20)], PLAIN)
    assert run.shape.images == 0
    assert run.shape in set(run.engine.buckets.shapes(run.engine.config))


def test_after_its_end_an_answer_takes_no_more_room(engine: Engine) -> None:
    rng = np.random.default_rng(8)
    prompts = [prompt(rng, 20, budget=2), prompt(rng, 20, budget=16)]
    run = finish(engine, prompts, PLAIN.dense())
    assert [held["shallow"] for held in run.held] == [19 + len(tokens) for tokens in run.tokens]
    assert run.held[0] == {"shallow": 21, "deep": 21}


def same(engine: Engine, prompts: list[Prepared], shape: Shape, sparsity: SparsityConfig) -> None:
    for one, together in zip(prompts, run(engine, prompts, shape, sparsity), strict=True):
        [alone] = run(engine, [one], ALONE[len(one.pixels)], sparsity)
        assert (together.tokens, together.keep, together.kept) == (alone.tokens, alone.keep, alone.kept)
        scale = max(1.0, np.abs(alone.logits).max())
        np.testing.assert_allclose(together.logits, alone.logits, atol=TOLERANCE * scale)


def finish(engine: Engine, prompts: list[Prepared], sparsity: SparsityConfig, **options: bool) -> Run:
    run = Run.open(engine, prompts, sparsity, **options)
    while not run.finished:
        run.advance()
    return run
