"""The linear layer. Kernels are two-dimensional everywhere, so that decoding never transposes a weight."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dynllava_jax.nn.param import normal, param, zeros


class Linear(nnx.Module):
    """`x @ kernel + bias`, computed in the dtype of `x`.

    I: input features, O: output features.
    """

    def __init__(
        self,
        rngs: nnx.Rngs,
        inputs: int,
        outputs: int,
        axes: tuple[str | None, str | None],
        *,
        bias: bool = False,
        std: float = 0.02,
    ):
        self.kernel = param(rngs, (inputs, outputs), axes, normal(std))
        self.bias = param(rngs, (outputs,), axes[1:], zeros) if bias else None

    def __call__(self, x: Float[Array, "*B I"]) -> Float[Array, "*B O"]:
        y = jnp.einsum("...i,io->...o", x, self.kernel[...].astype(x.dtype))
        return y if self.bias is None else y + self.bias[...].astype(x.dtype)


def gelu(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """The exact (erf) GELU of torch's `nn.GELU()`."""
    return jax.nn.gelu(x, approximate=False)


def quick_gelu(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """CLIP's GELU: x · sigmoid(1.702 x)."""
    return x * jax.nn.sigmoid(1.702 * x)
