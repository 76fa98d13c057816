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

_KEPT: dict[str, Any] = {
    # Who reads weights where they lie also writes results where they shall lie: XLA 0.11.2 makes six of a layer's seven
    # products twice, once into the stack that the backward pass reads, once for the next operation. Where memory is
    # short, 0.11.2 and 0.12 compute some of them once more in the backward pass, besides. Cutting weights out of their
    # stack costs less: a batch's products take long, and the copies are made beside them. Off by itself in 0.10.2.
    "xla_gpu_enable_dynamic_slice_fusion": False,
}

_CPU_BFLOAT16: dict[str, Any] = {
    # CPUs multiply in float32. XLA 0.10.2 converts whole stacks of layers before the loop over them: 26 GiB beside the
    # 13 of a 7B model. So each layer is converted when its turn comes, as 0.12 does.
    "xla_disable_hlo_passes": "while-loop-invariant-code-motion",
}


def xla_options(device: Any | None, dtype: str, *, keeps_products: bool = False) -> dict[str, Any] | None:
    """`compiler_options` of `jax.jit` for programs on this device; None where there are none.

    Args:
        device: it need not exist.
        dtype: of the layers' matrix products.
        keeps_products: the program has a backward pass that finds the layers' matrix products in memory.
    """
    platform = None if device is None else device.platform
    if platform == "cpu" and dtype == "bfloat16":
        return dict(_CPU_BFLOAT16)
    if platform != "gpu":
        return None
    return _GPU | _KEPT if keeps_products else dict(_GPU)
