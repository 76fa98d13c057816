"""A given answer judged at once is what decoding it token by token on the real cache gives."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllava_jax.data.batch import make_batch
from dynllava_jax.data.spans import IGNORE, expand
from dynllava_jax.inference.extend import ExtendPlan, extend
from dynllava_jax.inference.prefill import PrefillPlan, prefill
from dynllava_jax.sparsify.eviction import Eviction, HeavyHitters, SlidingWindow
from dynllava_jax.testing import tiny_config, tiny_model
from dynllava_jax.training.decisions import InferenceRule
from dynllava_jax.training.forward import ForwardPlan, forward

IMAGE, PROMPT, ANSWER = -200, 9, 14


def sample(answer: int):
    rng = np.random.default_rng(0)
    ids = rng.integers(3, 500, PROMPT + ANSWER)[: PROMPT + answer]
    labels = np.where(np.arange(ids.size) < PROMPT, IGNORE, ids)
    ids, labels = (np.insert(row, 3, value) for row, value in ((ids, IMAGE), (labels, IGNORE)))
    made = expand(ids, labels if answer else None, image_tokens=16, round_ids=())
    return make_batch([made], [[rng.standard_normal((56, 56, 3)).astype(np.float32)]], length=48, slots=1, rows=1)


def forced(model, eviction: Eviction | None = None) -> tuple[np.ndarray, float | None]:
    """Logits of every answer token, and the share of the answer that is held in the end."""
    plan = ForwardPlan(remat="none", eviction=eviction)
    keys = jax.random.split(jax.random.key(0), 1)
    out = jax.jit(functools.partial(forward, plan=plan))(model, sample(ANSWER), keys, InferenceRule())
    logits = model.decoder.logits(out.hidden)[0, PROMPT + 15 : PROMPT + 15 + ANSWER + 1]
    return np.asarray(logits), None if out.held is None else float(out.held[0])


@pytest.mark.parametrize(
    ("output", "instruct"),
    [
        ("learned", None),
        pytest.param("random", None, marks=pytest.mark.slow),
        pytest.param("learned", "learned", marks=pytest.mark.slow),
    ],
)
def test_deciding_once_is_what_the_cache_does(output: str, instruct: str | None) -> None:
    sparsity = dataclasses.replace(tiny_config().sparsity, output_selector=output, instruct_selector=instruct)
    model = tiny_model(dataclasses.replace(tiny_config(), sparsity=sparsity))
    if instruct is not None:
        last = model.instruct_predictor.layers[-1]
        last.bias[...] = jnp.array([-100.0, 100.0])  # drops whatever it may: the prompt's last token it may not
    keys = jax.random.split(jax.random.key(0), 1)
    plan = PrefillPlan(sparsity, 48, shallow_capacity=64, deep_capacity=64)
    opened = jax.jit(prefill, static_argnames="plan")(model, sample(0), keys, plan=plan)
    step = jax.jit(extend, static_argnames="plan")
    logits, cache = [opened.logits[0]], opened.cache
    for place, token in enumerate(sample(ANSWER).tokens[0, PROMPT + 16 : PROMPT + 16 + ANSWER]):
        one = jnp.full((1, 1), token, jnp.int32)
        seen = step(model, one, jnp.ones(1, jnp.int32), cache, keys, ExtendPlan(sparsity, "output"), jnp.full(1, place))
        logits.append(seen.logits[0])
        cache = seen.cache
    np.testing.assert_allclose(forced(model)[0], np.stack(logits), atol=2e-5)


@pytest.fixture(scope="module")
def dense():
    """A model that drops image tokens only, and its logits."""
    sparsity = dataclasses.replace(tiny_config().sparsity, output_selector=None)
    model = tiny_model(dataclasses.replace(tiny_config(), sparsity=sparsity))
    return model, forced(model)[0]


def test_a_budget_for_everything_changes_nothing(dense) -> None:
    logits, held = forced(dense[0], HeavyHitters(1.0))
    assert held == 1.0
    np.testing.assert_allclose(logits, dense[1], atol=1e-5)


@pytest.mark.parametrize(("eviction", "kept"), [(HeavyHitters(0.5), 8), (SlidingWindow(0.5), 7)])
def test_a_small_budget_changes_what_comes_after_it(dense, eviction: Eviction, kept: int) -> None:
    logits, held = forced(dense[0], eviction)
    # H2O makes room after a token was seen: its last query finds one more.
    assert held == pytest.approx(kept / ANSWER)
    same = np.abs(logits - dense[1]).max(axis=-1) < 1e-5
    assert same[:8].all()
    assert not same[9:].any()
