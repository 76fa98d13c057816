"""The decode kernels against XLA: run by the interpreter, lowered, and compiled for machines that are not here.

B batch, H query heads, G key/value heads, L layers, C capacity of a block, E head dimension.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # the only place that tells of races
from jax.experimental.pallas import tpu as pltpu

from dynllava_jax.analysis.aot import compile_ahead, described, memory, place, topology
from dynllava_jax.kernels import decode_tpu, decode_triton
from tests.kernels.cached import CASES, KERNELS, B, Case, L, abstract, arguments, attend, truth
from tests.kernels.machines import A100, LOWERED, V5E, needs_compiler, strict

TOLERANCE = 2e-6
# The second of them has every trait: groups, several blocks, one that is shorter than a tile.
ONE_FAST = [CASES[1], *(pytest.param(case, marks=pytest.mark.slow) for case in (CASES[0], *CASES[2:]))]


def assert_exact(kernel: str, args: tuple[Any, ...]) -> None:
    # With a peak of 16 scores reach 50 to 65, where rounding each of them once to float32, and computing the rest in
    # float64, is off by up to 1.4e-6. The kernels round differences of scores, and are off by 4e-7; XLA, which rounds
    # every sum of a product, is off by 6e-6.
    wanted = truth(*args)
    np.testing.assert_allclose(
        attend(kernel)(*args), wanted, rtol=0, atol=TOLERANCE * max(1.0, float(np.abs(wanted).max()))
    )


@pytest.mark.parametrize("case", ONE_FAST, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_float32_is_exact_and_reads_nothing_else(kernel: str, case: Case, data: st.DataObject) -> None:
    most = sum(case.capacities)
    length = st.integers(0, most) | st.sampled_from((0, 1, case.capacities[0], most))
    lengths, layer = data.draw(st.lists(length, min_size=B, max_size=B)), data.draw(st.integers(0, L - 1))
    seed, peak = data.draw(st.integers(0, 9)), data.draw(st.sampled_from((1.0, 16.0, 256.0)))
    assert_exact(kernel, arguments(case, lengths, layer, seed=seed, peak=peak))


@pytest.mark.parametrize("kernel", KERNELS)
def test_scores_rounded_a_few_times_would_not_do(kernel: str) -> None:
    """Two keys share a query, with raw products of 335: rounded for every 32 columns, they put it off by 2.2e-6."""
    assert_exact(kernel, arguments(CASES[2], [36, 0], 1, seed=2, peak=16.0))


@pytest.mark.slow
@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_any_shape(kernel: str, data: st.DataObject) -> None:
    """Each is a program of its own."""
    groups, ratio, batch, layers = (data.draw(st.integers(1, most)) for most in (3, 9, 3, 3))
    head_dim = data.draw(st.sampled_from((8, 64, 80, 96, 128)))
    capacities = tuple(data.draw(st.lists(st.integers(1, 300), min_size=1, max_size=3)))
    lengths = data.draw(st.lists(st.integers(0, sum(capacities)), min_size=batch, max_size=batch))
    layer, seed = data.draw(st.integers(0, layers - 1)), data.draw(st.integers(0, 9))
    case = Case(groups * ratio, groups, head_dim, capacities)
    peak = data.draw(st.sampled_from((1.0, 4.0)))
    assert_exact(kernel, arguments(case, lengths, layer, layers=layers, seed=seed, peak=peak))


@pytest.mark.parametrize("case", ONE_FAST, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_bfloat16_is_off_by_its_own_rounding(kernel: str, case: Case) -> None:
    args = arguments(case, [sum(case.capacities), 77], 1, dtype=jnp.bfloat16)
    out = attend(kernel)(*args)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), truth(*args), atol=1e-2)


@pytest.mark.parametrize("kernel", KERNELS)
def test_vmap(kernel: str) -> None:
    case = Case(4, 2, 64, (40, 30))
    each = [arguments(case, [3, 70], 0, seed=1), arguments(case, [50, 0], 1, seed=2)]
    found = jax.vmap(attend(kernel))(*jax.tree.map(lambda *x: jnp.stack(x), *each))
    for out, args in zip(found, each, strict=True):
        np.testing.assert_allclose(out, truth(*args), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("kernel", KERNELS)
def test_what_a_kernel_does_not_serve_it_says(kernel: str) -> None:
    query, key, value, blocks, *rest = arguments(CASES[0], [3, 4], 0)
    refused = KERNELS[kernel]
    twice = [jnp.concatenate([x, x], axis=2) for x in (query, key, value)]
    with pytest.raises(NotImplementedError, match="one new token, not 2"):
        refused(twice[0], twice[1], twice[2], blocks, *rest)
    with pytest.raises(NotImplementedError, match="the cache must be bfloat16, as the queries are"):
        refused(query.astype(jnp.bfloat16), key, value, blocks, *rest)
    with pytest.raises(NotImplementedError, match="head dimension 256 is above 128"):
        refused(*arguments(Case(1, 1, 256, (4,)), [0, 4], 0))


@settings(deadline=None)
@given(length=st.integers(0, 5000), tile=st.sampled_from((32, 64, 128)), parts=st.integers(1, 70))
def test_parts_share_the_tiles_of_a_length_evenly(length: int, tile: int, parts: int) -> None:
    with jax.disable_jit():
        shares = [decode_triton._share(np.int32(length), np.int32(part), tile, parts) for part in (0, parts - 1)]
    tiles = -(-length // tile)
    each = -(-tiles // parts)
    assert [int(x) for x in shares[0]] == [0, min(each, tiles)]
    assert int(shares[1][1]) == tiles
    assert int(shares[1][1] - shares[1][0]) <= each


@settings(deadline=None)
@given(length=st.integers(0, 5000), tile=st.sampled_from((128, 512)))
def test_a_tpu_fetches_the_tiles_of_a_length_and_no_others(length: int, tile: int) -> None:
    fetched = {int(decode_tpu._tile_to_read(np.int32(step), np.int32(length), tile)) for step in range(41)}
    assert fetched == set(range(max(1, -(-length // tile))))


@pytest.mark.parametrize("head_dim", [128, 64])  # the cache lies along the lanes by row, by column
def test_no_race_on_a_tpu(head_dim: int) -> None:
    args = arguments(Case(4, 2, head_dim, (600,)), [513, 0], 1)
    out = attend("tpu", pltpu.InterpretParams(detect_races=True))(*args)
    np.testing.assert_allclose(out, truth(*args), atol=TOLERANCE)
    races = interpret_pallas_call.races
    assert races is not None
    assert not races.races_found


@pytest.mark.parametrize("many", [False, True], ids=["", "vmap"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("kernel", "platform"), [("triton", "cuda"), ("tpu", "tpu")])
def test_lowering(kernel: str, platform: str, case: Case, dtype: str, many: bool) -> None:
    args = abstract(case, dtype)
    if many:
        args = jax.tree.map(lambda x: jax.ShapeDtypeStruct((3, *x.shape), x.dtype), args)
    function = jax.vmap(KERNELS[kernel]) if many else KERNELS[kernel]
    with described({"triton": A100, "tpu": V5E}[kernel]):
        text = jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()
    joins = 1 if kernel == "triton" else 0  # XLA joins the parts on a TPU
    assert text.count(LOWERED[platform]) == len(case.capacities) + joins


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        pytest.param(name, "tpu" if name.startswith("v") else "triton", marks=needs_compiler(name))
        for name in ("v4:1x1x1", "v5e:1x1", "v5p:1x1x1", "v6e:1x1", "a100:1x1", "h100:1x1", "h200:1x1")
    ],
)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_it_compiles_and_copies_nothing(name: str, kernel: str, dtype: str) -> None:
    device = topology(name)[0]
    for heads, groups, head_dim in ((32, 32, 128), (64, 8, 128), (16, 16, 64), (32, 32, 80), (32, 4, 96)):
        args = [place(arg, device) for arg in abstract(Case(heads, groups, head_dim, (2176,)), dtype)]
        needs = memory(compile_ahead(KERNELS[kernel], *args, compiler_options=strict(name)))
        assert needs.temporaries < 0.07 * needs.arguments, (heads, groups, head_dim)
