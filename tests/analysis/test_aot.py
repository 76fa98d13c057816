import importlib.util
import os

import jax
import jax.numpy as jnp
import pytest

from dynllava_jax.analysis.aot import compile_ahead, memory, place, topology
from dynllava_jax.errors import InputError
from dynllava_jax.nn.constrain import constrain, constraints
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.sharding.specs import activation_constraint, activation_sharding

needs_tpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the aot extra is not installed")
needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None, reason="the aot extra is not installed"
)
TPU = pytest.param("v5e:2x2", 4, marks=[pytest.mark.aot, needs_tpu])
ONE_TPU = pytest.param("v5e:1x1", 1, marks=[pytest.mark.aot, needs_tpu])
GPU = pytest.param("a100:1x4", 4, marks=[pytest.mark.aot, needs_cuda])
ONE_GPU = pytest.param("h100:1x1", 1, marks=[pytest.mark.aot, needs_cuda])


@pytest.mark.parametrize(("name", "count"), [TPU, ONE_TPU, GPU, ONE_GPU])
def test_matmul_on_one_device(name, count):
    devices = topology(name)
    assert len(devices) == count
    x = place(jax.ShapeDtypeStruct((512, 1024), jnp.bfloat16), devices[0])
    y = place(jax.ShapeDtypeStruct((1024, 256), jnp.bfloat16), devices[0])
    needs = memory(compile_ahead(jnp.matmul, x, y))
    assert needs.arguments == 2 * (512 * 1024 + 1024 * 256)
    assert needs.output == 2 * 512 * 256
    assert needs.total == needs.arguments + needs.temporaries + needs.output


@pytest.mark.parametrize(("name", "count"), [TPU, GPU])
def test_matmul_on_a_mesh(name, count):
    mesh = make_mesh("data=2,tensor=2", topology(name))
    shape, axes = (8, 128, 512), ("batch", "seq", "mlp")
    x = place(jax.ShapeDtypeStruct(shape, jnp.float32), activation_sharding(shape, axes, mesh))
    kernel = place(jax.ShapeDtypeStruct((512, 64), jnp.float32), activation_sharding((512, 64), ("mlp", None), mesh))
    with constraints(activation_constraint(mesh)):
        compiled = compile_ahead(lambda x, k: constrain(x @ k, "batch", "seq", "embed"), x, kernel)
    assert memory(compiled).arguments == 4 * (8 * 128 * 512 // 4 + 512 * 64 // 2)
    assert memory(compiled).output == 4 * 8 * 128 * 64 // 2
    assert "all-reduce" in str(compiled.as_text())


@pytest.mark.parametrize(("name", "count"), [TPU, GPU])
def test_a_donated_cache_in_its_own_layout_is_updated_in_place(name, count):
    device = topology(name)[0]
    cache = place({"key": jax.ShapeDtypeStruct((2, 4, 300, 64), jnp.bfloat16)}, device)
    row = place(jax.ShapeDtypeStruct((2, 4, 1, 64), jnp.bfloat16), device)

    def write(cache, row):
        return {"key": jax.lax.dynamic_update_slice(cache["key"], row, (0, 0, 7, 0))}

    needs = memory(compile_ahead(write, cache, row, own_layout=(0,), donate_argnums=(0,)))
    assert needs.output < 1024
    assert needs.temporaries < 0.05 * needs.arguments


@pytest.mark.parametrize("name", ["v5e", "v9:2x2", "a100:8x", "b200:1x8", "a100:1x9999999", ""])
def test_unknown_names_are_refused(name):
    with pytest.raises(InputError, match="is not known; use v4, v5e, v5p, v6e, a100, a100-40, h100, h200 with a shape"):
        topology(name)


@pytest.mark.parametrize("name", ["h100:99999x8", "v5e:512x512"])
def test_more_devices_than_the_memory_holds_are_refused(name):
    with pytest.raises(InputError, match=f"'{name}' has more than 65536 devices; give a smaller one"):
        topology(name)


@pytest.mark.aot
@needs_tpu
def test_impossible_shape_is_refused_and_the_environment_restored():
    before = dict(os.environ)
    with pytest.raises(InputError, match=r"'v5e:3x5' has no such shape: .*not divisible"):
        topology("v5e:3x5")
    assert dict(os.environ) == before


def test_missing_compiler_names_the_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"v5e needs libtpu; run: pip install 'dynllava_jax\[aot\]'"):
        topology("v5e:2x2")
