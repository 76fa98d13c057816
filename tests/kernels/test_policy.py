"""The kernels for whole sequences against XLA and the formula: outputs and all gradients.

B batch, H query heads, G key/value heads, S sequence, E head dimension.
"""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynllava_jax.kernels import chunked, xla
from tests.kernels.sequences import (
    KERNELS,
    SHAPES,
    Inputs,
    Shape,
    assert_close,
    exact,
    inputs,
    plain,
    truth,
    under_policy,
)

pytestmark = pytest.mark.usefixtures("small_tiles")

B = 2
ONE_FAST = [SHAPES[1], *(pytest.param(shape, marks=pytest.mark.slow) for shape in (SHAPES[0], *SHAPES[2:]))]
RATES = st.sampled_from((0.0, 0.3, 1.0))


def lengths_of(shape: Shape, batch: int = B) -> st.SearchStrategy[tuple[int, ...]]:
    length = st.integers(0, shape.length) | st.just(shape.length)
    return st.lists(length, min_size=batch, max_size=batch).map(tuple)


@st.composite
def anything(draw: st.DrawFn) -> Inputs:
    """Of any shape: each is a program of its own."""
    groups, ratio = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    length, head_dim = draw(st.integers(1, 200)), draw(st.sampled_from((8, 64, 80, 96, 128)))
    shape = Shape(groups * ratio, groups, length, head_dim)
    return inputs(
        shape,
        draw(lengths_of(shape, draw(st.integers(1, 3)))),
        seed=draw(st.integers(0, 99)),
        rate=draw(RATES),
        soft=draw(st.booleans()),
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=8, deadline=None)
@given(given=anything(), eps=st.sampled_from((0.0, 1e-6, 1e-2)))
def test_policy_attention_of_any_shape(name: str, given: Inputs, eps: float) -> None:
    assert_close(under_policy(name, eps)(given), truth(given, eps=eps), given)


@pytest.mark.parametrize("shape", ONE_FAST, ids=str)
@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_policy_attention(name: str, shape: Shape, data: st.DataObject) -> None:
    lengths, seed, soft = data.draw(lengths_of(shape)), data.draw(st.integers(0, 99)), data.draw(st.booleans())
    given = inputs(shape, lengths, seed=seed, soft=soft)
    assert_close(under_policy(name)(given), under_policy("xla")(given), given)


@pytest.mark.parametrize("shape", ONE_FAST, ids=str)
@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=6, deadline=None)
@given(data=st.data(), seed=st.integers(0, 99), rate=RATES)
def test_plain_attention_hides_dropped_keys(
    name: str, shape: Shape, data: st.DataObject, seed: int, rate: float
) -> None:
    given = inputs(shape, data.draw(lengths_of(shape)), seed=seed, rate=rate)
    assert_close(plain(name)(given), truth(given, eps=0.0, hide=True), given)


@pytest.mark.parametrize("shape", ONE_FAST, ids=str)
@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 99), rate=st.sampled_from((0.0, 0.3)))
def test_plain_attention_with_peaky_scores(name: str, shape: Shape, seed: int, rate: float) -> None:
    given = inputs(shape, (shape.length, shape.length - 7), seed=seed, peak=16.0, rate=rate)
    wanted = exact(name, truth(given, eps=0.0, hide=True), plain("xla")(given))
    assert_close(plain(name)(given), wanted, given, peak=16.0)


@pytest.mark.parametrize("name", KERNELS)
def test_a_dropped_key_holds_the_maximum(name: str) -> None:
    """The denominators fall to eps, and the gradient through the maximum is as large as the rest."""
    shape = SHAPES[1]
    given = inputs(shape, (shape.length, shape.length - 9))
    # Token 3 is dropped, and what the last queries like best by far.
    key = given.key.at[:, :, 3].set(4 * jnp.mean(given.query[:, ::2, 60:], axis=2) * shape.head_dim**0.5)
    query = given.query.at[:, :, 60:].add(jnp.mean(given.query[:, :, 60:], axis=2, keepdims=True) * 2)
    given = given._replace(key=key, query=query, policy=given.policy.at[:, 3].set(0.0))
    lowest = xla.lowest_denominator(given.query, given.key, given.policy, given.lengths)
    assert lowest < 1e-4
    wanted = exact(name, truth(given), under_policy("xla")(given))
    assert_close(under_policy(name)(given), wanted, given)


@pytest.mark.parametrize("name", ["xla", *KERNELS])
def test_a_denominator_whose_square_is_no_float32_has_gradients(name: str) -> None:
    """Without a leak: a dropped key's score lies 60 above all others, and exp(-60)**2 is 0."""
    given = inputs(Shape(2, 1, 20, 16), (20,), rate=0.5)
    key = given.key.at[:, :, 3].set(0.0).at[:, :, 3, 0].set(60.0)
    query = given.query.at[..., 0].set(4.0)
    given = given._replace(key=key.at[:, :, 4:, 0].set(0.0), query=query, policy=given.policy.at[:, 3].set(0.0))
    found, wanted = under_policy(name, 0.0)(given), truth(given, eps=0.0)
    assert np.abs(wanted[4]).max() > 1e24
    for ours, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours, other, rtol=0, atol=1e-5 * np.abs(other).max())


@pytest.mark.parametrize("name", KERNELS)
def test_peaky_scores(name: str) -> None:
    """They reach 50 to 65: rounded once to float32, with the rest in float64, they put the output off by 1.1e-6."""
    for shape, seed in itertools.product(SHAPES[1:], range(2)):
        given = inputs(shape, (shape.length, shape.length - 7), seed=seed, peak=16.0)
        wanted = exact(name, truth(given), under_policy("xla")(given))
        assert_close(under_policy(name)(given), wanted, given)


@pytest.mark.parametrize("name", KERNELS)
def test_without_leak_and_with_all_kept_it_is_plain_attention(name: str) -> None:
    given = inputs(SHAPES[2], (40, 40), rate=1.0)
    assert_close(under_policy(name, 0.0)(given)[:4], plain("xla")(given), given)


@pytest.mark.parametrize("shape", ONE_FAST, ids=str)
@pytest.mark.parametrize("hide", [False, True], ids=["policy", "plain"])
@pytest.mark.parametrize("name", KERNELS)
def test_bfloat16_is_off_by_its_own_rounding(name: str, hide: bool, shape: Shape) -> None:
    run = plain if hide else under_policy
    given = inputs(shape, (shape.length, shape.length - 20))
    wanted = run("xla")(given)
    half = given._replace(**{field: getattr(given, field).astype(jnp.bfloat16) for field in ("query", "key", "value")})
    found = run(name)(half._replace(cotangent=given.cotangent.astype(jnp.bfloat16)))
    assert [x.dtype.name for x in found] == ["bfloat16"] * 4 + ["float32"] * (not hide)
    real = np.arange(shape.length) < np.asarray(given.lengths)[:, None]
    for index, (ours, other) in enumerate(zip(found, wanted, strict=True)):
        seen = real[:, None, :, None] if hide and index == 0 else 1.0
        np.testing.assert_allclose(
            ours.astype(jnp.float32) * seen, other * seen, atol=0.03 * np.abs(other * seen).max()
        )


@pytest.mark.parametrize("name", KERNELS)
def test_bfloat16_where_a_dropped_key_holds_the_maximum(name: str) -> None:
    """What flows through the largest score is then most of the gradient, and the right key has to get it."""
    given = inputs(Shape(2, 1, 130, 64), (130, 101), peak=16.0, rate=0.1)
    fields = ("query", "key", "value", "cotangent")
    half = given._replace(**{field: getattr(given, field).astype(jnp.bfloat16) for field in fields})
    rounded = half._replace(**{field: getattr(half, field).astype(jnp.float32) for field in fields})
    found, wanted = under_policy(name)(half), truth(rounded)
    for ours, other in zip(found[1:], wanted[1:], strict=True):
        off = np.linalg.norm(np.asarray(ours, np.float64) - other) / np.linalg.norm(other)
        assert off < 0.015


def test_chunks_need_no_multiple_of_their_size() -> None:
    given = inputs(Shape(2, 1, 45, 16), (45, 20))
    dropped = given.policy.at[:].set(0.0) > 0  # nobody but oneself
    out = chunked.attention(*given[:3], keep=dropped)
    np.testing.assert_allclose(out, jnp.repeat(given.value, 2, axis=1), atol=1e-6)
