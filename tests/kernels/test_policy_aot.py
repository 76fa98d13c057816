"""The kernels for whole sequences, lowered and compiled for machines that are not here.

B batch, H query heads, G key/value heads, S sequence, E head dimension.
"""

import importlib.util
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dynllava_jax.analysis.aot import compile_ahead, described, memory, place, topology
from dynllava_jax.kernels import api

SPILLS = {
    "xla_gpu_fail_ptx_compilation_on_register_spilling": True,
    # What `conftest` turns off.
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
}


class Described:
    """What the door asks a device."""

    def __init__(self, platform: str, kind: str):
        self.platform, self.device_kind = platform, kind


A100, V5E = Described("gpu", "NVIDIA A100-SXM4-80GB"), Described("tpu", "TPU v5 lite")


def arguments(heads: int, groups: int, length: int, head_dim: int, dtype: Any, batch: int = 2) -> list[Any]:
    def of(*shape: int, dtype: Any = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), dtype)

    query, key = of(heads, length, head_dim), of(groups, length, head_dim)
    return [query, key, key, of(length, dtype=jnp.float32), of(dtype=jnp.int32), query]


def both(hide: bool) -> Callable[..., Any]:
    """Output and gradients, by whatever the door takes for the platform."""

    def run(*args: jax.Array) -> Any:
        *inputs, lengths, cotangent = args

        def attend(query: jax.Array, key: jax.Array, value: jax.Array, policy: jax.Array) -> jax.Array:
            if hide:
                return api.attention(query, key, value, keep=policy > 0)
            return api.policy_attention(query, key, value, policy, lengths)

        out, pull = jax.vjp(attend, *inputs)
        return out, pull(cotangent)

    return run


@pytest.mark.parametrize("many", [False, True])
@pytest.mark.parametrize(("device", "platform"), [(A100, "cuda"), (V5E, "tpu")], ids=["cuda", "tpu"])
def test_lowering(device: Described, platform: str, many: bool) -> None:
    args = arguments(4, 2, 300, 80, jnp.bfloat16)
    if many:
        args = [jax.ShapeDtypeStruct((3, *x.shape), x.dtype) for x in args]
    function = jax.vmap(both(False)) if many else both(False)
    with described(device):
        text = jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()
    kernels = {"cuda": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}
    assert text.count(kernels[platform]) >= 3


@pytest.mark.parametrize("device", [Described("gpu", "NVIDIA L4"), Described("tpu", "TPU v3"), Described("gpu", "AMD")])
def test_the_door_falls_back_where_there_is_no_kernel(device: Described) -> None:
    with described(device):
        program = str(jax.make_jaxpr(both(True))(*arguments(2, 2, 40, 64, jnp.float32)))
    assert "pallas_call" not in program


def installed(package: str, *names: str) -> list[Any]:
    missing = importlib.util.find_spec(package) is None
    skip = pytest.mark.skipif(missing, reason="the aot extra is not installed")
    return [pytest.param(name, marks=skip) for name in names]


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        *installed("libtpu", "v4:1x1x1", "v5e:1x1", "v5p:1x1x1", "v6e:1x1"),
        *installed("jax_cuda13_plugin", "a100:1x1", "h100:1x1"),
    ],
)
def test_it_compiles_without_spills_and_holds_no_scores(name: str) -> None:
    device = topology(name)[0]
    options = SPILLS if device.platform == "gpu" else {}

    def temporaries(hide: bool, *shape: Any) -> float:
        args = arguments(*shape)
        return (
            memory(compile_ahead(both(hide), *(place(x, device) for x in args), compiler_options=options)).temporaries
            / 2**30
        )

    assert temporaries(False, 32, 32, 2048, 128, jnp.bfloat16, 4) <= 0.1
    assert temporaries(True, 8, 4, 704, 64, jnp.float32) <= 0.1
    if device.platform == "gpu":  # the smallest tiles of the table
        assert temporaries(False, 8, 4, 704, 128, jnp.float32) <= 0.1
