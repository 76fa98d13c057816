"""How long a call takes, and what the device can do at best, on whatever JAX runs on."""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_ROUNDS = 3
_MOST_CALLS = 1000


@dataclasses.dataclass(frozen=True)
class Machine:
    """What one device was measured to do.

    Attributes:
        kind: what it calls itself.
        platform: "cpu", "gpu" or "tpu".
        flops: FLOP/s of a large matrix product.
        bandwidth: bytes/s of a large copy, read and written.
    """

    kind: str
    platform: str
    flops: float
    bandwidth: float

    def record(self) -> dict[str, Any]:
        """As every record of a benchmark holds it."""
        return {"device": self.kind, "matmul_tflops": self.flops / 1e12, "copy_gb_per_second": self.bandwidth / 1e9}


def measure(function: Callable[..., Any], *args: Any, least: float = 0.2) -> float:
    """Seconds of one call: the median of three rounds of at least `least` seconds, after a first call that compiles.

    The calls of a round are waited for together, so that what a device does while the host prepares the next one
    is not counted twice.
    """
    jax.block_until_ready(function(*args))
    once = _clock(function, args, 1)
    calls = min(_MOST_CALLS, max(1, math.ceil(least / max(once, 1e-9))))
    return statistics.median(_clock(function, args, calls) for _ in range(_ROUNDS))


def machine(dtype: str, *, least: float = 0.2) -> Machine:
    """Measures the default device."""
    device = jax.devices()[0]
    side = 512 if device.platform == "cpu" else 8192
    # Random numbers, as in a model: a GPU that multiplies equal ones draws less power and is a tenth faster.
    x = jax.random.normal(jax.random.key(0), (side, side), jnp.dtype(dtype))
    product = measure(jax.jit(jnp.matmul), x, x, least=least)
    large = jnp.ones((side, 4 * side), dtype)
    # A copy proper: an addition written by XLA moved a quarter less on an H200.
    copied = measure(jax.jit(jnp.copy), large, least=least)
    return Machine(device.device_kind, device.platform, 2 * side**3 / product, 2 * large.nbytes / copied)


def peak_bytes() -> int | None:
    """The most memory that the default device held at once since the process began; None where it does not say."""
    stats = jax.devices()[0].memory_stats()
    return None if not stats else stats.get("peak_bytes_in_use")


def _clock(function: Callable[..., Any], args: tuple[Any, ...], calls: int) -> float:
    began = time.perf_counter()
    for _ in range(calls - 1):
        function(*args)  # not kept: the results of a round together would fill the device
    jax.block_until_ready(function(*args))
    return (time.perf_counter() - began) / calls
