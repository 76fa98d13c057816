"""What XLA is told about the programs with the model's layers, beside what it takes for granted."""

from typing import Any

_GPU: dict[str, Any] = {
    # Its own matrix products have a layer's weights cut out of their stack first: as much traffic again, twice. cuBLAS
    # reads them where they lie, from jax 0.11 on; if told to, the XLA of 0.10.2 fails (BufferAllocation). Without a GPU
    # to tune on, XLA's own products also take one block size for all, which does not fit 577 tokens.
    "xla_gpu_enable_triton_gemm": False,
    # Products that share their left side would be made one, by copying both weights side by side in every layer.
    "xla_gpu_dot_merger_threshold_mb": 0,
}


def xla_options(device: Any | None) -> dict[str, Any] | None:
    """`compiler_options` of `jax.jit` for programs on this device, which need not exist; None where there are none."""
    return dict(_GPU) if device is not None and device.platform == "gpu" else None
