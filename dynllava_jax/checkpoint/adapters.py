"""Low-rank adapters of a training checkpoint: each becomes part of the kernel that it stands beside.

I: input features, O: output features, R: rank.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float, Float32

from dynllava_jax.checkpoint.leaves import Target
from dynllava_jax.config.training import LoraConfig
from dynllava_jax.errors import InputError, some
from dynllava_jax.nn.linear import LORA_NAMES


def is_adapter(path: str) -> bool:
    return path.rpartition("/")[2] in LORA_NAMES


def pairs(
    found: Mapping[str, tuple[int, ...]], model: Mapping[str, Target], lora: LoraConfig | None, where: str
) -> dict[str, tuple[str, str]]:
    """The adapters of a checkpoint by the kernels that they belong to.

    Args:
        found: shape of each adapter, by path.
        model: the model's parameters, by path.
        lora: as the checkpoint recorded it.
        where: the checkpoint, for errors.

    Returns:
        Path of a kernel -> paths of `lora_a` and `lora_b`.

    Raises:
        InputError: no scale was recorded, or adapters fit no kernel (all in one message).
    """
    if found and lora is None:
        raise InputError(f"{where} has adapters but does not say how they are scaled: they cannot be merged.")
    made: dict[str, tuple[str, str]] = {}
    problems: list[str] = []
    for layer in dict.fromkeys(path.rpartition("/")[0] for path in found):
        kernel = model.get(f"{layer}/kernel")
        if kernel is None:
            problems.append(f"the model has no {layer}/kernel")
            continue
        assert lora is not None
        *stack, inputs, outputs = kernel.shape
        a, b = made[kernel.path] = (f"{layer}/{LORA_NAMES[0]}", f"{layer}/{LORA_NAMES[1]}")
        for path, shape in ((a, (*stack, inputs, lora.rank)), (b, (*stack, lora.rank, outputs))):
            if path not in found:
                problems.append(f"{path} is missing")
            elif found[path] != shape:
                problems.append(f"{path} has shape {list(found[path])}, not {list(shape)}")
    if problems:
        raise InputError(f"{where} has adapters that do not fit its model: {some(problems, '; ')}.")
    return made


def merged(
    kernel: Float[np.ndarray, "I O"], a: Float[np.ndarray, "I R"], b: Float[np.ndarray, "R O"], scale: float
) -> Float32[np.ndarray, "I O"]:
    """What `nn.linear.Linear` computes with adapters, as one kernel; in float32 whatever the dtypes are."""
    low = a.astype(np.float32) @ b.astype(np.float32)
    return kernel.astype(np.float32) + low * np.float32(scale)
