"""Feed-forward blocks.

*B leading axes, D features.
"""

from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, Float

from dynllava_jax.config.training import LoraConfig
from dynllava_jax.nn.linear import Linear, adapter

Activation = Callable[[jax.Array], jax.Array]


class GatedMlp(nnx.Module):
    """Llama's SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, rngs: nnx.Rngs, width: int, hidden: int, std: float, lora: LoraConfig | None = None):
        self.gate = Linear(rngs, width, hidden, ("embed", "mlp"), std=std, lora=adapter(lora, "gate"))
        self.up = Linear(rngs, width, hidden, ("embed", "mlp"), std=std, lora=adapter(lora, "up"))
        self.down = Linear(rngs, hidden, width, ("mlp", "embed"), std=std, lora=adapter(lora, "down"))

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return self.down(jax.nn.silu(self.gate(x)) * self.up(x))


class Mlp(nnx.Module):
    """Two linear layers with biases around one activation (ViT blocks)."""

    def __init__(self, rngs: nnx.Rngs, width: int, hidden: int, activation: Activation, std: float = 0.02):
        self.up = Linear(rngs, width, hidden, ("embed", "mlp"), bias=True, std=std)
        self.down = Linear(rngs, hidden, width, ("mlp", "embed"), bias=True, std=std)
        self.activation = activation

    def __call__(self, x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
        return self.down(self.activation(self.up(x)))
