"""What the door takes by itself, by device, shape and dtype of each operation, and what it says of the rest.

B batch, H query heads, G key/value heads, S sequence, C capacity of a cache, E head dimension.
"""

import functools
import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dynllava_jax.analysis.aot import described
from dynllava_jax.kernels import api
from tests.kernels.machines import A100, V5E, Described

KERNELS = {"gpu": "triton", "tpu": "tpu"}
B, H, G, S, C = 2, 4, 2, 40, 30


def sequences(attend: Callable[..., jax.Array], head_dim: int, dtype: Any) -> tuple[Callable[..., Any], list[Any]]:
    """Output and gradients, and what to call it with."""
    query, key = (jax.ShapeDtypeStruct((B, count, S, head_dim), dtype) for count in (H, G))

    def run(query: jax.Array, key: jax.Array, cotangent: jax.Array) -> Any:
        out, pull = jax.vjp(attend, query, key, key)
        return out, pull(cotangent)

    return run, [query, key, query]


def cached(head_dim: int, dtype: Any) -> tuple[Callable[..., Any], list[Any]]:
    query, key = (jax.ShapeDtypeStruct((B, count, 1, head_dim), dtype) for count in (H, G))
    block = jax.ShapeDtypeStruct((3, B, G, C, head_dim), dtype)
    layer, lengths = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((), (B,)))
    return api.cached_attention, [query, key, key, [(block, block)], layer, lengths]


def under_policy(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    return api.policy_attention(query, key, value, jnp.ones((B, S)), jnp.full((B,), S))


DOORS: dict[str, Callable[[int, Any], tuple[Callable[..., Any], list[Any]]]] = {
    "attention": functools.partial(sequences, api.attention),
    "policy_attention": functools.partial(sequences, under_policy),
    "cached_attention": cached,
}


@pytest.fixture(params=DOORS)
def op(request: pytest.FixtureRequest) -> str:
    return request.param


def traced(
    op: str, device: Described, caplog: pytest.LogCaptureFixture, head_dim: int = 64, dtype: Any = jnp.bfloat16
) -> tuple[str, list[str]]:
    """The program of an operation on a device, and what the door said."""
    function, args = DOORS[op](head_dim, dtype)
    api._say_once.cache_clear()
    with described(device), caplog.at_level(logging.INFO, logger=api.__name__):
        program = str(jax.make_jaxpr(lambda *args: function(*args))(*args))
    return program, caplog.messages


@pytest.mark.parametrize(
    "device",
    [
        A100,
        V5E,
        Described("gpu", "NVIDIA H100 80GB HBM3"),
        Described("gpu", "NVIDIA H200"),
        Described("gpu", "NVIDIA GH200 480GB"),
    ],
    ids=str,
)
def test_a_known_device_runs_the_kernel(device: Described, op: str, caplog: pytest.LogCaptureFixture) -> None:
    program, said = traced(op, device, caplog)
    assert "pallas_call" in program
    assert said == [f"{op} runs as {KERNELS[device.platform]}"]


GPUS, TPUS = "A100, H100, H200, GH200", "TPU v4, TPU v5 lite, TPU v5, TPU v5p, TPU v6 lite"


@pytest.mark.parametrize(
    "device",
    [
        Described("gpu", "NVIDIA L4"),
        Described("gpu", "Tesla T4"),
        Described("gpu", "AMD Instinct MI300X"),
        Described("tpu", "TPU v3"),
    ],
    ids=str,
)
def test_an_unknown_device_does_without_it(device: Described, op: str, caplog: pytest.LogCaptureFixture) -> None:
    program, said = traced(op, device, caplog)
    assert "pallas_call" not in program
    reason = {
        "gpu": f"there are block sizes for {GPUS}, none for {device.device_kind}",
        "tpu": f"it was compiled for {TPUS}, never for {device.device_kind}",
    }[device.platform]
    assert said == [f"{op} runs as chunked (not {KERNELS[device.platform]}: {reason})"]


@pytest.mark.parametrize("device", [A100, V5E], ids=str)
@pytest.mark.parametrize(
    ("head_dim", "dtype", "reason"),
    [
        (256, jnp.bfloat16, "head dimension 256 is above 128"),
        (64, jnp.float16, "it serves float32 and bfloat16, not float16"),
    ],
)
def test_a_shape_or_dtype_that_it_does_not_serve(
    device: Described, head_dim: int, dtype: Any, reason: str, op: str, caplog: pytest.LogCaptureFixture
) -> None:
    program, said = traced(op, device, caplog, head_dim, dtype)
    assert "pallas_call" not in program
    assert said == [f"{op} runs as chunked (not {KERNELS[device.platform]}: {reason})"]
