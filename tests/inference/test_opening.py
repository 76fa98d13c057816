"""The pass over a prompt asks the output predictor nothing: there is no answer yet."""

import dataclasses

import jax
import numpy as np
import pytest

from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.data.batch import make_batch
from dynllava_jax.inference import selection
from dynllava_jax.inference.buckets import Shape
from dynllava_jax.inference.prefill import prefill
from dynllava_jax.inference.run import asked_of
from dynllava_jax.sparsify.selector import TokenView
from tests.inference.random_batches import INSTRUCTED, PLAIN, SHAPES, make_engine, random_batch


@pytest.mark.parametrize(("sparsity", "times"), [(PLAIN, 0), (INSTRUCTED, 1)])
def test_only_an_instruction_is_judged(sparsity: SparsityConfig, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = []

    def judge(selector: object, view: TokenView) -> jax.Array:
        judged.append(selector)
        return jax.numpy.zeros((*view.positions.shape, 2))

    monkeypatch.setattr(selection, "text_logits", judge)
    body, params, arguments = make_engine().prefill_program(SHAPES[0][0], sparsity)
    jax.eval_shape(body, params, *arguments)
    assert len(judged) == times


@pytest.mark.parametrize(("shape", "sparsity"), [SHAPES[2], SHAPES[3]])
def test_judging_an_answer_that_is_not_there_changes_no_bit(shape: Shape, sparsity: SparsityConfig) -> None:
    engine = make_engine()
    plan = dataclasses.replace(engine.opening_plan(shape, sparsity), sparsity=sparsity)
    assert plan != engine.opening_plan(shape, sparsity)
    judging = jax.jit(lambda model, batch, keys: prefill(model, batch, keys, plan))
    rng = np.random.default_rng(0)
    for _ in range(3):
        prepared = random_batch(rng, shape)
        samples, pixels = [item.sample for item in prepared], [item.pixels for item in prepared]
        batch = make_batch(samples, pixels, length=shape.length, slots=shape.images, rows=shape.rows)
        state, opened = engine.open(batch, asked_of(prepared, shape.rows), shape, sparsity)
        out = judging(engine.model, batch, state.draws.key)
        np.testing.assert_array_equal(opened.logits, out.logits)
        for ours, theirs in zip(jax.tree.leaves(state.cache), jax.tree.leaves(out.cache), strict=True):
            np.testing.assert_array_equal(ours, theirs)
