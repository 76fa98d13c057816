"""The linear layer. Kernels are two-dimensional everywhere, so that decoding never transposes a weight.

*B leading axes, I input features, O output features, R rank of an adapter.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dynllava_jax.config.training import LoraConfig
from dynllava_jax.nn.param import normal, param, zeros
from dynllava_jax.nn.pieces import Pieces

LORA_NAMES = ("lora_a", "lora_b")


class Linear(nnx.Module):
    """`x @ kernel + bias`, computed in the dtype of `x`; with low-rank adapters `+ (x @ lora_a) @ lora_b · scale`."""

    def __init__(
        self,
        rngs: nnx.Rngs,
        inputs: int,
        outputs: int,
        axes: tuple[str | None, str | None],
        *,
        bias: bool = False,
        std: float = 0.02,
        lora: LoraConfig | None = None,
    ):
        self.kernel = param(rngs, (inputs, outputs), axes, normal(std))
        self.bias = param(rngs, (outputs,), axes[1:], zeros) if bias else None
        # Their product starts as 0.
        self.lora_a = param(rngs, (inputs, lora.rank), (axes[0], None), normal(inputs**-0.5)) if lora else None
        self.lora_b = param(rngs, (lora.rank, outputs), (None, axes[1]), zeros) if lora else None
        self.lora_scale = lora.scale if lora else 0.0

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        y = multiply(x, self.kernel[...])
        if self.lora_a is not None and self.lora_b is not None:
            low = jnp.einsum("...i,ir->...r", x, self.lora_a[...].astype(x.dtype))
            y = y + jnp.einsum("...r,ro->...o", low, self.lora_b[...].astype(x.dtype)) * self.lora_scale
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


def multiply(x: Float[Array, "*B I"], kernel: Float[Array, "I O"] | Pieces) -> Float[Array, "*B O"]:
    """`x @ kernel`, computed in the dtype of `x`."""
    if isinstance(kernel, Pieces):
        return kernel.multiply(x)
    return jnp.einsum("...i,io->...o", x, kernel.astype(x.dtype))


def adapter(lora: LoraConfig | None, name: str) -> LoraConfig | None:
    """The adapters of the layer called `name`, if it gets some."""
    return lora if lora is not None and name in lora.targets else None


def gelu(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """The exact (erf) GELU of torch's `nn.GELU()`."""
    return jax.nn.gelu(x, approximate=False)


def quick_gelu(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """CLIP's GELU: x · sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)
