"""Where we differ from the official code on purpose: one test of the clean answer per line of docs/differences.md."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.data.batch import make_batch
from dynllava_jax.data.spans import Kind, expand
from dynllava_jax.errors import InputError
from dynllava_jax.inference.buckets import Buckets
from dynllava_jax.inference.cache import Cache
from dynllava_jax.inference.engine import Engine
from dynllava_jax.inference.extend import ExtendOutput, ExtendPlan, extend
from dynllava_jax.inference.prefill import PrefillOutput, PrefillPlan, prefill
from dynllava_jax.inference.run import Prepared, Run, asked_of
from dynllava_jax.inference.sampling import GREEDY
from dynllava_jax.model.dynllava import DynamicLlava
from dynllava_jax.sparsify.policy import KeepPolicy, OfficialTopN, Threshold
from dynllava_jax.testing import tiny_config, tiny_model

CONFIG = tiny_config()
WITH_INSTRUCT = dataclasses.replace(CONFIG.sparsity, instruct_selector="learned")
BUCKETS = Buckets(rows=(1, 4), images=(0, 1, 2), length=(64,), answer=(16,), instruction=(32,), segment=16)
IMAGE = -200


@pytest.fixture(scope="module")
def model():
    return tiny_model(dataclasses.replace(CONFIG, sparsity=WITH_INSTRUCT))


@pytest.fixture(scope="module")
def engine(model) -> Engine:
    return Engine(model, buckets=BUCKETS, collect_logits=True)


@pytest.fixture(scope="module")
def run_prefill(model):
    return jax.jit(lambda batch, keys, plan: prefill(model, batch, keys, plan), static_argnums=2)


def prompt(seed: int, text: int, marks: tuple[int, ...] = (5,), budget: int = 8) -> Prepared:
    """A random prompt of `text` tokens with an image before each of the positions `marks`."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, 500, text).tolist()
    for mark in sorted(marks, reverse=True):
        ids.insert(mark, IMAGE)
    sample = expand(ids, None, image_tokens=CONFIG.image_tokens, round_ids=())
    pixels = [rng.standard_normal((56, 56, 3)).astype(np.float32) for _ in marks]
    return Prepared(sample, pixels, budget, GREEDY, 0)


def finish(engine: Engine, prompts: list[Prepared], sparsity: SparsityConfig, **options: bool) -> Run:
    run = Run.open(engine, prompts, sparsity, **options)
    while not run.finished:
        run.advance()
    return run


def alone_equals_together(engine: Engine, prompts: list[Prepared], sparsity: SparsityConfig) -> None:
    together = finish(engine, prompts, sparsity)
    for row, one in enumerate(prompts):
        alone = finish(engine, [one], sparsity)
        assert alone.tokens[0] == together.tokens[row]
        assert alone.fed[0] == together.fed[row]
        assert alone.kept[0] == together.kept[row]


def padded(prompts: list[Prepared], length: int = 64, answers: tuple[tuple[int, ...], ...] | None = None):
    """A batch of these prompts, each followed by answer tokens."""
    samples = []
    for row, one in enumerate(prompts):
        more = np.array(answers[row] if answers else (), np.int32)
        sample = one.sample
        samples.append(
            dataclasses.replace(
                sample,
                tokens=np.concatenate([sample.tokens, more]),
                kind=np.concatenate([sample.kind, np.full(len(more), Kind.ANSWER, np.int32)]),
            )
        )
    pixels = [one.pixels for one in prompts]
    slots = max(len(images) for images in pixels)
    return make_batch(samples, pixels, length=length, slots=slots, rows=len(prompts))


def keys(rows: int) -> jax.Array:
    return jax.vmap(jax.random.key)(jnp.zeros(rows, jnp.uint32))


THRESHOLD = Threshold()


def plan(length: int = 64, policy: KeepPolicy = THRESHOLD) -> PrefillPlan:
    return PrefillPlan(CONFIG.sparsity, length, keep_policy=policy)


def test_padding_changes_nothing_in_any_layer(run_prefill) -> None:
    outputs = [run_prefill(padded([prompt(0, 20)], length), keys(1), plan(length)) for length in (64, 96)]
    np.testing.assert_allclose(outputs[0].logits, outputs[1].logits, atol=2e-5)
    np.testing.assert_array_equal(outputs[0].kept_origin, outputs[1].kept_origin)


@pytest.mark.slow
def test_a_batch_has_no_phantom_keys_and_images_stand_anywhere(engine: Engine) -> None:
    prompts = [prompt(1, 20), prompt(2, 9, (0,)), prompt(3, 15, (3, 12)), prompt(4, 30, (29,))]
    alone_equals_together(engine, prompts, CONFIG.sparsity)


def test_a_sample_without_image_changes_nothing_for_the_others(engine: Engine) -> None:
    alone_equals_together(engine, [prompt(5, 20), prompt(6, 40, ())], CONFIG.sparsity)


@pytest.mark.slow
def test_the_instruct_predictor_serves_batches(engine: Engine) -> None:
    prompts = [prompt(7, 25), prompt(8, 18, (2,)), prompt(9, 12, ())]
    alone_equals_together(engine, prompts, WITH_INSTRUCT)
    deep = [held["deep"] for held in finish(engine, prompts, WITH_INSTRUCT).held]
    plain = [held["deep"] for held in finish(engine, prompts, CONFIG.sparsity).held]
    assert deep[0] < plain[0]


def test_a_cache_can_be_branched(model, engine: Engine) -> None:
    state, _ = engine.open(*open_arguments(engine, prompt(10, 20)))
    before = feed(model, state.cache, 7).logits
    feed(model, state.cache, 8)
    again = feed(model, state.cache, 7).logits
    np.testing.assert_array_equal(before, again)


@jax.jit
def feed(model: DynamicLlava, cache: Cache, token: Any) -> ExtendOutput:
    """One token of a known answer on top of a cache."""
    plan = ExtendPlan(CONFIG.sparsity, "output")
    return extend(model, jnp.full((1, 1), token), jnp.ones(1, jnp.int32), cache, keys(1), plan)


def open_arguments(engine: Engine, one: Prepared):
    shape = engine.buckets.shape(CONFIG, [one.sample.length], [len(one.pixels)], one.budget)
    batch = make_batch([one.sample], [one.pixels], length=shape.length, slots=shape.images, rows=1)
    return batch, asked_of([one], 1), shape, CONFIG.sparsity


def test_without_cache_no_token_is_fed_twice(run_prefill, engine: Engine) -> None:
    one = prompt(11, 20)
    _, opened = engine.open(*open_arguments(engine, one))
    out: PrefillOutput = run_prefill(padded([one]), keys(1), plan())
    np.testing.assert_allclose(out.logits, opened.logits, atol=2e-5)
    assert out.selection.lengths.tolist() == opened.deep_length.tolist()


def test_without_cache_each_sample_keeps_its_own(run_prefill) -> None:
    prompts = [prompt(12, 20), prompt(13, 20)]
    answers = (tuple(range(30, 42)), tuple(range(60, 72)))

    def kept(rows: list[int], policy: KeepPolicy) -> list[int]:
        batch = padded([prompts[row] for row in rows], 96, tuple(answers[row] for row in rows))
        out = run_prefill(batch, keys(len(rows)), plan(96, policy))
        return np.sum(np.asarray(out.selection.keep) & (np.asarray(batch.kind) == Kind.ANSWER), axis=-1).tolist()

    clean = kept([0, 1], THRESHOLD)
    assert clean == kept([0], THRESHOLD) + kept([1], THRESHOLD)
    assert clean[0] != clean[1]  # else the next line shows nothing
    assert kept([0, 1], OfficialTopN()) == [max(clean)] * 2


def test_nothing_is_remembered_between_prompts(engine: Engine) -> None:
    first = finish(engine, [prompt(14, 12)], CONFIG.sparsity, use_cache=False)
    finish(engine, [prompt(15, 30)], CONFIG.sparsity, use_cache=False)
    again = finish(engine, [prompt(14, 12)], CONFIG.sparsity, use_cache=False)
    assert (first.tokens, first.fed) == (again.tokens, again.fed)


def test_an_answer_has_a_likelihood_after_pruning(model, engine: Engine) -> None:
    one = prompt(16, 20)
    run = Run.open(engine, [one], CONFIG.sparsity)
    state, out = engine.advance(run.state, run.shape, CONFIG.sparsity)  # type: ignore[arg-type]
    state, _ = engine.open(*open_arguments(engine, one))
    cache, steps = state.cache, int(out.steps)
    assert steps == one.budget - 1
    for step, token in enumerate([run.tokens[0][0], *np.asarray(out.tokens)[0, : steps - 1].tolist()]):
        forced = feed(model, cache, token)
        cache = forced.cache
        likelihood = jax.nn.log_softmax(forced.logits[0])
        assert np.isfinite(likelihood).all()
        assert out.logits is not None
        np.testing.assert_allclose(forced.logits[0], out.logits[0, step], atol=2e-5)


def test_an_image_at_the_very_end_leaves_an_empty_instruction(engine: Engine) -> None:
    alone_equals_together(engine, [prompt(17, 10, (10,)), prompt(18, 20)], WITH_INSTRUCT)


def test_a_prompt_beyond_the_context_is_refused_not_cut(engine: Engine) -> None:
    with pytest.raises(InputError, match="prompt tokens"):
        Run.open(engine, [prompt(19, 2000)], CONFIG.sparsity)


@pytest.mark.parametrize(("count", "rate", "kept"), [(576, 0.2, 115), (100, 0.29, 28), (4, 0.2, 1)])
def test_the_keep_count_is_truncated_and_never_0(count: int, rate: float, kept: int) -> None:
    assert SparsityConfig(image_keep_rate=rate).kept("image", count) == kept
