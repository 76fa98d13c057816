"""The kernels for whole sequences against XLA: outputs, all gradients, and what they refuse.

B batch, H query heads, G key/value heads, S sequence, E head dimension.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.ad_checkpoint import print_saved_residuals
from jax.experimental.pallas import tpu as pltpu

from dynllava_jax.errors import InputError
from dynllava_jax.kernels import api, chunked, policy_join, policy_tpu, tuning, xla
from dynllava_jax.nn.constrain import constraints
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.sharding.specs import activation_constraint

FORWARD, GRADIENT = 2e-6, 1e-5
KERNELS = ("chunked", "triton-interpret", "tpu-interpret")
B = 2


class Shape(NamedTuple):
    """Heads, length and head dimension."""

    heads: int
    groups: int
    length: int
    head_dim: int


# Several tiles each, the last of which is partly padding; 80 and 96 are padded to a power of two by one kernel.
SHAPES = [Shape(2, 2, 150, 64), Shape(4, 2, 70, 80), Shape(3, 1, 40, 96), Shape(1, 1, 130, 128)]


class Inputs(NamedTuple):
    """Arguments of `policy_attention`, and the cotangent of its result, 0 in padding."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    policy: jax.Array
    lengths: jax.Array
    cotangent: jax.Array


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "CHUNK", 32)
    monkeypatch.setattr(tuning, "_TPU_SIDE", {2: 128, 4: 128})


def inputs(shape: Shape, lengths: tuple[int, ...], *, seed: int = 0, peak: float = 1.0, soft: bool = False) -> Inputs:
    rng = np.random.default_rng(seed)

    def normal(heads: int, scale: float = 1.0) -> np.ndarray:
        return rng.standard_normal((len(lengths), heads, shape.length, shape.head_dim)) * scale

    arrays = normal(shape.heads, peak), normal(shape.groups), normal(shape.groups)
    policy = rng.random((len(lengths), shape.length)) if soft else rng.random((len(lengths), shape.length)) < 0.3
    real = np.arange(shape.length) < np.array(lengths)[:, None]
    cotangent = normal(shape.heads) * real[:, None, :, None]
    query, key, value, policy, cotangent = (jnp.asarray(x, jnp.float32) for x in (*arrays, policy, cotangent))
    return Inputs(query, key, value, policy, jnp.asarray(lengths), cotangent)


@functools.cache
def under_policy(name: str, eps: float = 1e-6) -> Callable[..., Any]:
    """Output and gradients of `policy_attention` by one implementation."""

    def run(given: Inputs) -> tuple[jax.Array, ...]:
        def attend(*args: jax.Array) -> jax.Array:
            return api.policy_attention(*args, lengths=given.lengths, eps=eps, implementation=name)

        out, pull = jax.vjp(attend, *given[:4])
        return out, *pull(given.cotangent)

    return jax.jit(run)


@functools.cache
def plain(name: str) -> Callable[..., Any]:
    """Output and gradients of `attention` with dropped keys."""

    def run(given: Inputs) -> tuple[jax.Array, ...]:
        def attend(*args: jax.Array) -> jax.Array:
            return api.attention(*args, keep=given.policy > 0, implementation=name)

        out, pull = jax.vjp(attend, *given[:3])
        return out, *pull(given.cotangent)

    return jax.jit(run)


def assert_close(
    found: tuple[jax.Array, ...], wanted: tuple[jax.Array, ...], given: Inputs, *, forward: float = FORWARD
) -> None:
    real = np.arange(given.query.shape[2]) < np.asarray(given.lengths)[:, None]
    for name, one, other in zip(("out", "query", "key", "value", "policy"), found, wanted, strict=False):
        ours, truth = np.asarray(one), np.asarray(other)
        assert np.isfinite(ours).all(), name
        if name == "out":
            ours, truth = (x * real[:, None, :, None] for x in (ours, truth))
        allowed = forward if name == "out" else GRADIENT
        np.testing.assert_allclose(ours, truth, rtol=0, atol=allowed * max(1.0, np.abs(truth).max()), err_msg=name)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=6, deadline=None)
@given(data=st.data())
def test_policy_attention(name: str, shape: Shape, data: st.DataObject) -> None:
    length = st.integers(0, shape.length) | st.just(shape.length)
    lengths = tuple(data.draw(st.lists(length, min_size=B, max_size=B)))
    given = inputs(shape, lengths, seed=data.draw(st.integers(0, 99)), soft=data.draw(st.booleans()))
    assert_close(under_policy(name)(given), under_policy("xla")(given), given)


@pytest.mark.parametrize("shape", SHAPES[1:3], ids=str)
@pytest.mark.parametrize("name", KERNELS)
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 99), peak=st.sampled_from((1.0, 16.0)))
def test_plain_attention_hides_dropped_keys(name: str, shape: Shape, seed: int, peak: float) -> None:
    given = inputs(shape, (shape.length, shape.length), seed=seed, peak=peak)
    forward = FORWARD if peak == 1 else 4 * peak * float(np.finfo(np.float32).eps)
    assert_close(plain(name)(given), plain("xla")(given), given, forward=forward)


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
    found, wanted = under_policy(name)(given), under_policy("xla")(given)
    assert_close(found, wanted, given, forward=1e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_peaky_scores(name: str) -> None:
    given = inputs(SHAPES[1], (70, 33), peak=16.0)
    assert_close(under_policy(name)(given), under_policy("xla")(given), given, forward=1e-5)


@pytest.mark.parametrize("name", KERNELS)
def test_without_leak_and_with_all_kept_it_is_plain_attention(name: str) -> None:
    given = inputs(SHAPES[2], (40, 40))
    given = given._replace(policy=jnp.ones_like(given.policy))
    assert_close(under_policy(name, 0.0)(given)[:4], plain("xla")(given), given)


@pytest.mark.parametrize(
    "shape", [SHAPES[1], *(pytest.param(shape, marks=pytest.mark.slow) for shape in (SHAPES[0], *SHAPES[2:]))], ids=str
)
@pytest.mark.parametrize("name", KERNELS)
def test_bfloat16_is_off_by_its_own_rounding(name: str, shape: Shape) -> None:
    given = inputs(shape, (shape.length, shape.length - 20))
    wanted = under_policy("xla")(given)
    half = given._replace(**{field: getattr(given, field).astype(jnp.bfloat16) for field in ("query", "key", "value")})
    found = under_policy(name)(half._replace(cotangent=given.cotangent.astype(jnp.bfloat16)))
    assert [x.dtype.name for x in found] == ["bfloat16"] * 4 + ["float32"]
    for ours, truth in zip(found, wanted, strict=True):
        np.testing.assert_allclose(ours.astype(jnp.float32), truth, atol=0.03 * np.abs(truth).max())


@pytest.mark.parametrize("name", KERNELS[1:])
def test_what_a_kernel_does_not_serve_it_says(name: str) -> None:
    given = inputs(SHAPES[2], (40, 40))
    args = given[:5]
    with pytest.raises(InputError, match="it serves causal attention only"):
        api.policy_attention(*args, causal=False, implementation=name)
    with pytest.raises(InputError, match="it serves float32 and bfloat16, not float16"):
        api.attention(*(x.astype(jnp.float16) for x in args[:3]), implementation=name)
    with pytest.raises(InputError, match="head dimension 192 is above 128"):
        api.attention(*(jnp.concatenate([x, x], axis=3) for x in args[:3]), implementation=name)


@pytest.mark.parametrize("name", KERNELS)
def test_vmap(name: str) -> None:
    given = inputs(SHAPES[2], (40, 11))
    pair = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), given)
    found = jax.vmap(under_policy(name))(pair)
    for index, order in enumerate((slice(None), slice(None, None, -1))):
        each = jax.tree.map(lambda x, order=order: x[order], given)
        assert_close(tuple(x[index] for x in found), under_policy("xla")(each), each)


def test_a_remat_policy_may_keep_what_the_backward_pass_needs(capsys: pytest.CaptureFixture[str]) -> None:
    given = inputs(SHAPES[2], (40, 40))

    def loss(query: jax.Array) -> jax.Array:
        return jnp.sum(api.attention(query, given.key, given.value, implementation="triton-interpret") ** 2)

    policy = jax.checkpoint_policies.save_only_these_names(*api.RESIDUALS)
    print_saved_residuals(jax.checkpoint(loss, policy=policy), given.query)
    kept = capsys.readouterr().out
    assert kept.count("named 'attention_out'") == 1
    assert kept.count("named 'attention_rows'") == 3


@pytest.mark.parametrize("groups", [4, 2, 1])
@pytest.mark.parametrize("name", ["triton-interpret", "tpu-interpret"])
def test_each_device_runs_its_own_part(name: str, groups: int) -> None:
    """Also where there are fewer key/value heads than the mesh would split."""
    mesh = make_mesh("data=2,tensor=4")
    given = inputs(Shape(4, groups, 40, 32), (40, 17))

    def run(given: Inputs) -> tuple[jax.Array, ...]:
        return under_policy(name)(given)

    with constraints(activation_constraint(mesh)):
        under_policy.cache_clear()
        assert "shard_map" in str(jax.make_jaxpr(run)(given))
        found = run(given)
    under_policy.cache_clear()
    assert_close(found, under_policy("xla")(given), given)


def test_no_race_on_a_tpu() -> None:
    given = inputs(Shape(2, 1, 200, 128), (200,))
    interpret = pltpu.InterpretParams(detect_races=True)

    def attend(*args: jax.Array) -> jax.Array:
        make = functools.partial(policy_tpu.kernel, interpret=interpret)
        return policy_join.policy_attention(make, *args, lengths=given.lengths)

    out, pull = jax.vjp(attend, *given[:4])
    assert_close((out, *pull(given.cotangent)), under_policy("xla")(given), given)
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    races = interpret_pallas_call.races
    assert races is not None
    assert not races.races_found


def test_chunks_need_no_multiple_of_their_size() -> None:
    given = inputs(Shape(2, 1, 45, 16), (45, 20))
    dropped = given.policy.at[:].set(0.0) > 0  # nobody but oneself
    out = chunked.attention(*given[:3], keep=dropped)
    np.testing.assert_allclose(out, jnp.repeat(given.value, 2, axis=1), atol=1e-6)


def test_the_interpreter_stands_in_for_the_kernels_that_are_compiled() -> None:
    for name in ("triton", "tpu"):
        for compiled, interpreted in zip(api._KERNELS[name], api._KERNELS[f"{name}-interpret"], strict=True):
            assert isinstance(interpreted, functools.partial)
            assert (interpreted.func, interpreted.keywords) == (compiled, {"interpret": True})
