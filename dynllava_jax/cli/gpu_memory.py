"""Commands take as much of a GPU's memory as `dynllava plan` counts on; JAX by itself takes three quarters."""

import os

from dynllava_jax.planning.machine import SHARE

_FRACTION = "XLA_CLIENT_MEM_FRACTION"
_NAMES = (_FRACTION, "XLA_PYTHON_CLIENT_MEM_FRACTION")
"""The second is deprecated; JAX refuses to start where both are set."""


def take_gpu_memory() -> None:
    """Sets the share before JAX looks for devices, where the user has not.

    It is also what the allocator `cuda_async` keeps: what lies above is given back to the driver whenever the host
    waits, and mapped again by the next step (`CU_MEMPOOL_ATTR_RELEASE_THRESHOLD` in XLA's
    gpu_cudamallocasync_allocator.cc).
    """
    if not any(os.environ.get(name) for name in _NAMES):
        os.environ[_FRACTION] = str(SHARE)
