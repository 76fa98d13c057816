"""The decoder's attention projections. What attends to what is decided by the caller (see `kernels.api`).

B batch, S sequence, D features, H query heads, G key/value heads, N either of them,
E head dimension, C all of their columns.
"""

import jax
from flax import nnx
from jaxtyping import Array, Float

from dynllava_jax.config.decoder import DecoderConfig
from dynllava_jax.config.training import LoraConfig
from dynllava_jax.nn.constrain import constrain
from dynllava_jax.nn.linear import Linear, adapter
from dynllava_jax.nn.rope import Rope, rotate


class Attention(nnx.Module):
    """Query, key, value and output projections with grouped key/value heads."""

    def __init__(self, rngs: nnx.Rngs, config: DecoderConfig, lora: LoraConfig | None = None):
        def linear(name: str, inputs: int, outputs: int, axes: tuple[str, str]) -> Linear:
            bias, std = config.attention_bias, config.initializer_range
            return Linear(rngs, inputs, outputs, axes, bias=bias, std=std, lora=adapter(lora, name))

        width, head_dim = config.hidden_size, config.head_dim
        self.query = linear("query", width, config.num_heads * head_dim, ("embed", "heads"))
        self.key = linear("key", width, config.num_kv_heads * head_dim, ("embed", "kv_heads"))
        self.value = linear("value", width, config.num_kv_heads * head_dim, ("embed", "kv_heads"))
        self.out = linear("out", config.num_heads * head_dim, width, ("heads", "embed"))
        self.head_dim = head_dim

    def project(
        self, x: Float[Array, "B S D"], by: Rope
    ) -> tuple[Float[Array, "B H S E"], Float[Array, "B G S E"], Float[Array, "B G S E"]]:
        """Rotated queries and keys, and values, heads before sequence as every kernel wants them."""
        query = constrain(self._heads(self.query(x)), "batch", "heads", "seq", None)
        key = constrain(self._heads(self.key(x)), "batch", "kv_heads", "seq", None)
        value = constrain(self._heads(self.value(x)), "batch", "kv_heads", "seq", None)
        return rotate(query, by), rotate(key, by), value

    def merge(self, x: Float[Array, "B H S E"]) -> Float[Array, "B S D"]:
        batch, _, length, _ = x.shape
        return self.out(x.transpose(0, 2, 1, 3).reshape(batch, length, -1))

    def _heads(self, x: Float[Array, "B S C"]) -> Float[Array, "B N S E"]:
        batch, length, _ = x.shape
        # Folded into the product, this reshape makes the TPU compiler copy the whole stack's kernels transposed.
        x = jax.lax.optimization_barrier(x)
        return x.reshape(batch, length, -1, self.head_dim).transpose(0, 2, 1, 3)
