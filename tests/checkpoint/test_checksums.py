"""A checksum is the same wherever the array lies, and another one after any flipped bit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from dynllava_jax.analysis import aot
from dynllava_jax.checkpoint import checksums
from dynllava_jax.sharding.mesh import make_mesh


def of_device(x: jax.Array) -> str:
    return checksums.finish(checksums.describe({"x": x}))["x"]["checksum"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(), (5,), (3, 1, 4)])
def test_host_and_device_agree(shape: tuple[int, ...], dtype: str) -> None:
    x = np.random.default_rng(0).integers(0, 200, shape).astype(np.dtype(dtype))
    assert of_device(jnp.asarray(x)) == checksums.on_host(x)


@pytest.mark.parametrize("spec", [("data", "fsdp"), (None, ("fsdp", "data")), (None, None), ("fsdp",)])
def test_any_sharding_agrees(spec: tuple[object, ...]) -> None:
    x = np.random.default_rng(0).standard_normal((8, 16, 3), np.float32)
    where = jax.sharding.NamedSharding(make_mesh("data=2,fsdp=4"), jax.P(*spec))
    assert of_device(jax.device_put(x, where)) == checksums.on_host(x)


def test_large_arrays_are_cut_for_the_threads() -> None:
    x = np.random.default_rng(0).standard_normal((3, 40_000), np.float32)
    assert of_device(jnp.asarray(x)) == checksums.on_host(x)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_one_flipped_bit_changes_both_sums(data: st.DataObject) -> None:
    dtype = data.draw(st.sampled_from([np.uint8, np.uint16, np.uint32]))
    x = data.draw(hnp.arrays(dtype, hnp.array_shapes(max_dims=3, max_side=6)))
    bit = data.draw(st.integers(0, 8 * x.nbytes - 1))
    flipped = x.copy()
    flipped.reshape(-1).view(np.uint8)[bit // 8] ^= np.uint8(1 << bit % 8)
    before, after = checksums.on_host(x), checksums.on_host(flipped)
    assert before[:8] != after[:8]
    assert before[8:] != after[8:]


def test_places_count() -> None:
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    others = [x[::-1], x[:, ::-1], x.transpose(0, 2, 1).reshape(x.shape), np.roll(x, 1, -1), np.zeros_like(x)]
    assert len({checksums.on_host(other) for other in [x, *others]}) == 6


def test_what_has_no_checksum() -> None:
    with pytest.raises(ValueError, match="no checksum for float64"):
        checksums.on_host(np.zeros(3))


@pytest.mark.aot
@pytest.mark.parametrize(("machine", "compiler"), [("a100:1x8", "jax_cuda13_plugin"), ("v5e:2x2", "libtpu")])
def test_costs_no_memory(machine: str, compiler: str) -> None:
    pytest.importorskip(compiler, reason="the aot extra is not installed")
    mesh = jax.sharding.Mesh(np.array(aot.topology(machine)), ("fsdp",))
    x = jax.ShapeDtypeStruct((30, 4096, 11008), jnp.float32, sharding=jax.NamedSharding(mesh, jax.P(None, "fsdp")))
    compiled = aot.compile_ahead(lambda x: checksums.on_device(x), x)
    assert aot.memory(compiled).temporaries < 1 << 20
