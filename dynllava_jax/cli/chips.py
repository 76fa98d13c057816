"""Commands start quietly where the compilers of the `aot` extra are installed but no chip is there."""

import glob
import importlib.util
import os

_COMPILERS = ("libtpu", "jax_cuda13_plugin")
"""What the extra installs; JAX tries both at its start, and each warns at length that it found no chip."""
_CHIPS = ("/dev/nvidia[0-9]*", "/dev/dxg", "/dev/accel*", "/dev/vfio/[0-9]*")
"""Where Linux shows GPUs (also under Windows) and TPUs."""


def choose_platform() -> None:
    """Names the CPU as the only platform, before JAX is imported, where looking for others can only fail.

    `JAX_PLATFORMS` is left alone when it is set, when there is a chip, and when a plugin was installed by itself.
    """
    aot = all(importlib.util.find_spec(compiler) for compiler in _COMPILERS)
    if aot and not any(glob.glob(place) for place in _CHIPS):
        os.environ.setdefault("JAX_PLATFORMS", "cpu")
