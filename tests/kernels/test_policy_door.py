"""The kernels for whole sequences under what JAX does to functions, and what they refuse.

B batch, H query heads, G key/value heads, S sequence, E head dimension.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.ad_checkpoint import print_saved_residuals
from jax.experimental.pallas import tpu as pltpu

from dynllava_jax.errors import InputError
from dynllava_jax.kernels import api, decode_tpu, decode_triton, policy_join, policy_tpu
from dynllava_jax.nn.constrain import constraints
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.sharding.specs import activation_constraint
from tests.kernels.sequences import KERNELS, SHAPES, Inputs, Shape, assert_close, inputs, plain, under_policy

pytestmark = pytest.mark.usefixtures("small_tiles")


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


@pytest.mark.parametrize("run", [under_policy, plain], ids=["policy", "plain"])
@pytest.mark.parametrize("name", KERNELS)
def test_vmap(name: str, run: Any) -> None:
    given = inputs(SHAPES[2], (40, 11))
    pair = jax.tree.map(lambda x: jnp.stack([x, x[::-1]]), given)
    found = jax.vmap(run(name))(pair)
    for index, order in enumerate((slice(None), slice(None, None, -1))):
        each = jax.tree.map(lambda x, order=order: x[order], given)
        assert_close(tuple(x[index] for x in found), run("xla")(each), each)


@pytest.mark.parametrize("name", ["triton-interpret", "tpu-interpret"])
def test_a_remat_policy_may_keep_what_the_backward_pass_needs(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Queries, keys and values without the padding of a kernel, and nothing that they are made of."""
    shape = SHAPES[1]
    given = inputs(shape, (70, 40))
    _, _, length, size = shape

    def loss(hidden: jax.Array, weights: list[jax.Array]) -> jax.Array:
        products = (jnp.einsum("bsd,dhe->bhse", hidden, kernel) for kernel in weights)
        query, key, value = (product * jnp.arange(1.0, size + 1) for product in products)  # as a rotation does
        out = api.policy_attention(query, key, value, given.policy, given.lengths, implementation=name)
        return jnp.sum(out**2)

    hidden = jnp.ones((2, length, 8))
    weights = [jnp.ones((8, heads, size)) for heads in (shape.heads, shape.groups, shape.groups)]
    policy = jax.checkpoint_policies.save_from_both_policies(
        jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
        jax.checkpoint_policies.save_only_these_names(*api.RESIDUALS),
    )
    print_saved_residuals(jax.checkpoint(loss, policy=policy), hidden, weights)
    kept = capsys.readouterr().out
    assert kept.count(f"f32[2,{shape.heads},{length},{size}] named 'attention_in'") == 1
    assert kept.count(f"f32[2,{shape.groups},{length},{size}] named 'attention_in'") == 2
    assert kept.count("named 'attention_out'") == 1
    assert kept.count("named 'attention_rows'") == 3
    assert "dot_general" not in kept


@pytest.mark.parametrize("groups", [4, 2, pytest.param(1, marks=pytest.mark.slow)])
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


@pytest.mark.slow
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


def test_the_interpreter_stands_in_for_the_kernels_that_are_compiled() -> None:
    for name, make in (("triton", decode_triton.kernel), ("tpu", decode_tpu.kernel)):
        compiled, interpreted = (api._KERNELS[of] for of in (name, f"{name}-interpret"))
        assert isinstance(interpreted[0], functools.partial)
        assert (interpreted[0].func, interpreted[0].keywords) == (compiled[0], {"interpret": True})
        for kernel, wanted in ((compiled[1], make()), (interpreted[1], make(interpret=True))):
            assert _called(kernel.read) == _called(wanted.read)
            assert _called(kernel.join) == _called(wanted.join)


def _called(function: Any) -> Any:
    return (function.func, function.keywords) if isinstance(function, functools.partial) else function
