"""The decode kernels against XLA: run by the interpreter, lowered, and compiled for machines that are not here.

B batch, H query heads, G key/value heads, L layers, C capacity of a block, E head dimension.
"""

import functools
import importlib.util
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # the only place that tells of races
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractDevice, AbstractMesh

from dynllava_jax.analysis.aot import compile_ahead, memory, place, topology
from dynllava_jax.kernels import decode_join, decode_tpu, decode_triton, xla

TOLERANCE = 2e-6
READ = {"triton": decode_triton.read, "tpu": decode_tpu.read}
KERNELS = {name: functools.partial(decode_join.cached_attention, read) for name, read in READ.items()}
L, B = 2, 2


class Case(NamedTuple):
    """A cache and who reads it."""

    heads: int
    groups: int
    head_dim: int
    capacities: tuple[int, ...]


# Each needs several tiles, the last of which ends outside the cache.
CASES = [
    Case(4, 4, 128, (70, 45)),
    Case(4, 2, 64, (600, 30, 1)),
    Case(3, 1, 80, (530,)),
    Case(10, 1, 96, (150, 140)),
]


@functools.cache
def attend(kernel: str, interpret: Any = True) -> Callable[..., jax.Array]:
    if kernel == "xla":
        return jax.jit(xla.cached_attention)
    read = functools.partial(READ[kernel], interpret=interpret)
    return jax.jit(functools.partial(decode_join.cached_attention, read))


def arguments(
    case: Case, lengths: list[int], layer: int, *, seed: int = 0, peak: float = 1.0, dtype: Any = jnp.float32
) -> tuple[Any, ...]:
    """Random ones. Whatever must not be read, the other layers and all beyond a length, is no number."""
    rng = np.random.default_rng(seed)
    query, key, value = (
        jnp.asarray(rng.standard_normal((B, count, 1, case.head_dim)) * scale, dtype)
        for count, scale in ((case.heads, peak), (case.groups, 1.0), (case.groups, 1.0))
    )
    blocks, start = [], 0
    for capacity in case.capacities:
        pair = rng.standard_normal((2, L, B, case.groups, capacity, case.head_dim))
        pair[:, 1 - layer] = np.nan
        for sample, length in enumerate(lengths):
            pair[:, :, sample, :, max(0, length - start) :] = np.nan
        blocks.append(tuple(jnp.asarray(x, dtype) for x in pair))
        start += capacity
    return query, key, value, blocks, jnp.asarray(layer), jnp.asarray(lengths)


def truth(
    query: jax.Array, key: jax.Array, value: jax.Array, blocks: Any, layer: jax.Array, lengths: jax.Array
) -> tuple[np.ndarray, float]:
    """The formula in float64, and the largest score in it."""
    double = [np.asarray(x, np.float64) for x in (query, key, value)]
    cache = [
        np.concatenate([np.asarray(x, np.float64)[int(layer)] for x in side], axis=2)
        for side in zip(*blocks, strict=True)
    ]
    heads, head_dim = double[0].shape[1], double[0].shape[3]
    largest, out = 0.0, np.zeros((B, heads, 1, head_dim))
    for sample, head in np.ndindex(B, heads):
        group = head // (heads // double[1].shape[1])
        keys, values = (
            np.concatenate([held[sample, group, : lengths[sample]], new[sample, group]])
            for held, new in zip(cache, double[1:], strict=True)
        )
        scores = keys @ double[0][sample, head, 0] / math.sqrt(head_dim)
        weights = np.exp(scores - scores.max())
        out[sample, head, 0] = weights @ values / weights.sum()
        largest = max(largest, float(np.abs(scores).max()))
    return out, largest


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_float32_is_as_exact_as_xla_and_reads_nothing_else(kernel: str, case: Case, data: st.DataObject) -> None:
    most = sum(case.capacities)
    length = st.integers(0, most) | st.sampled_from((0, 1, case.capacities[0], most))
    args = arguments(
        case,
        data.draw(st.lists(length, min_size=B, max_size=B)),
        data.draw(st.integers(0, L - 1)),
        seed=data.draw(st.integers(0, 9)),
        peak=data.draw(st.sampled_from((1.0, 16.0))),
    )
    wanted, score = truth(*args)
    # A score is itself off by as many times float32's precision as it is large, the weights and their sum with it: at
    # scores of 51 XLA's own product was 8.3e-6 off.
    allowed = max(TOLERANCE, 2 * score * 2.0**-23)
    np.testing.assert_allclose(
        attend(kernel)(*args), wanted, rtol=0, atol=allowed * max(1.0, float(np.abs(wanted).max()))
    )


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("kernel", KERNELS)
def test_bfloat16_is_off_by_its_own_rounding(kernel: str, case: Case) -> None:
    args = arguments(case, [sum(case.capacities), 77], 1, dtype=jnp.bfloat16)
    out = attend(kernel)(*args)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), truth(*args)[0], atol=1e-2)


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


def test_no_race_on_a_tpu() -> None:
    args = arguments(Case(4, 2, 128, (600,)), [513, 0], 1)
    out = attend("tpu", pltpu.InterpretParams(detect_races=True))(*args)
    np.testing.assert_allclose(out, truth(*args)[0], atol=TOLERANCE)
    races = interpret_pallas_call.races
    assert races is not None
    assert not races.races_found


def abstract(case: Case, dtype: Any, rows: int = B) -> list[Any]:
    def of(*shape: int, dtype: Any = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    new = of(rows, case.groups, 1, case.head_dim)
    blocks = [(of(4, rows, case.groups, capacity, case.head_dim),) * 2 for capacity in case.capacities]
    query = of(rows, case.heads, 1, case.head_dim)
    return [query, new, new, blocks, of(dtype=jnp.int32), of(rows, dtype=jnp.int32)]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("kernel", "platform"), [("triton", "cuda"), ("tpu", "tpu")])
def test_lowering(kernel: str, platform: str, case: Case) -> None:
    kind = AbstractDevice(*{"cuda": ("NVIDIA H100", None, "gpu"), "tpu": ("TPU v5 lite", 1, "tpu")}[platform])
    with jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=kind)):
        traced = jax.jit(KERNELS[kernel]).trace(*abstract(case, jnp.bfloat16))
        assert "custom_call" in traced.lower(lowering_platforms=(platform,)).as_text()


def installed(package: str, kernel: str, *names: str) -> list[Any]:
    missing = importlib.util.find_spec(package) is None
    skip = pytest.mark.skipif(missing, reason="the aot extra is not installed")
    return [pytest.param(name, kernel, marks=skip) for name in names]


SPILLS = {
    "xla_gpu_fail_ptx_compilation_on_register_spilling": True,
    # What `conftest` turns off.
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
}


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kernel"),
    [
        *installed("libtpu", "tpu", "v4:1x1x1", "v5e:1x1", "v5p:1x1x1", "v6e:1x1"),
        *installed("jax_cuda13_plugin", "triton", "a100:1x1", "h100:1x1"),
    ],
)
def test_it_compiles_and_copies_nothing(name: str, kernel: str) -> None:
    device = topology(name)[0]
    options = SPILLS if kernel == "triton" else {}
    for dtype in (jnp.bfloat16, jnp.float32):
        for heads, groups, head_dim in ((32, 32, 128), (64, 8, 128), (16, 16, 64), (32, 32, 80), (32, 4, 96)):
            args = abstract(Case(heads, groups, head_dim, (2176,)), dtype)
            compiled = compile_ahead(
                KERNELS[kernel],
                *(place(arg, device) for arg in args),
                compiler_options=options,
            )
            needs = memory(compiled)
            assert needs.temporaries < 0.07 * needs.arguments, (dtype, heads, groups, head_dim)
