"""Machines that are not here: what the door asks of a device, and what their compilers need."""

import importlib.util
from typing import Any

import pytest


class Described:
    """What the door asks a device."""

    def __init__(self, platform: str, kind: str):
        self.platform, self.device_kind = platform, kind

    def __str__(self) -> str:
        return self.device_kind


A100, V5E = Described("gpu", "NVIDIA A100-SXM4-80GB"), Described("tpu", "TPU v5 lite")
LOWERED = {"cuda": "__gpu$xla.gpu.triton", "tpu": "tpu_custom_call"}
"""Name of a kernel in a program that was lowered for a platform."""

_SPILLS = {
    "xla_gpu_fail_ptx_compilation_on_register_spilling": True,
    # What `conftest` turns off.
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
}


def needs_compiler(name: str) -> pytest.MarkDecorator:
    """Skips where the compiler for a topology (see `aot.topology`) is not installed."""
    missing = importlib.util.find_spec("libtpu" if name.startswith("v") else "jax_cuda13_plugin") is None
    return pytest.mark.skipif(missing, reason="the aot extra is not installed")


def strict(name: str) -> dict[str, Any]:
    """Compiler options for a topology under which a program that spills registers is an error."""
    return {} if name.startswith("v") else _SPILLS
