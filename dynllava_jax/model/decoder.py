"""The Llama decoder as two stacks: shallow layers see every token, deep layers what the selection left.

B batch, S sequence (or T new tokens), D hidden size, V vocabulary, H query heads, G key/value heads,
E head dimension, L layers of one stack, C capacity.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from dynllava_jax.config.decoder import DecoderConfig
from dynllava_jax.config.training import LoraConfig
from dynllava_jax.kernels.api import RESIDUALS
from dynllava_jax.nn.attention import Attention
from dynllava_jax.nn.constrain import constrain
from dynllava_jax.nn.linear import Linear, multiply
from dynllava_jax.nn.mlp import GatedMlp
from dynllava_jax.nn.norm import RmsNorm
from dynllava_jax.nn.param import normal, param
from dynllava_jax.nn.pieces import kernel_in_pieces, layer_in_pieces
from dynllava_jax.nn.rope import Rope
from dynllava_jax.nn.stack import num_layers, stack

Remat = Literal["full", "dots", "none"]
"""What a backward pass finds in memory: nothing but each layer's input, its matrix products too, or everything."""

Attend = Callable[[Array, Array, Array, Array], Array]
"""(query [B,H,S,E], key [B,G,S,E], value [B,G,S,E], layer index) -> [B,H,S,E]."""

Watch = Callable[[Array, Array], Array]
"""(query [B,H,S,E], key [B,G,S,E]) of a layer -> what a caller wants to know of them."""


class DecoderLayer(nnx.Module):
    """Pre-norm attention and SwiGLU, each on a residual branch."""

    def __init__(self, rngs: nnx.Rngs, config: DecoderConfig, lora: LoraConfig | None = None):
        self.attention_norm = RmsNorm(rngs, config.hidden_size, config.norm_eps)
        self.attention = Attention(rngs, config, lora)
        self.mlp_norm = RmsNorm(rngs, config.hidden_size, config.norm_eps)
        self.mlp = GatedMlp(rngs, config.hidden_size, config.intermediate_size, config.initializer_range, lora)


class StackOutput(NamedTuple):
    """What a stack leaves behind.

    Attributes:
        hidden: residual stream after the last layer.
        key, value: every layer's rotated keys and values, padded to the capacity asked for, or None without one.
        trace: residual stream after every layer, or None when not asked for.
        watched: what was watched in every layer, or None.
    """

    hidden: Float[Array, "B S D"]
    key: Float[Array, "L B G C E"] | None
    value: Float[Array, "L B G C E"] | None
    trace: Float[Array, "L B S D"] | None
    watched: Float[Array, "L ..."] | None

    def keys_values(self) -> tuple[Float[Array, "L B G C E"], Float[Array, "L B G C E"]]:
        """Keys and values of a stack that was run with a capacity."""
        assert self.key is not None
        assert self.value is not None
        return self.key, self.value


class Decoder(nnx.Module):
    """Embedding, two stacks, final norm and vocabulary head (official `LlamaForCausalLM`)."""

    def __init__(self, rngs: nnx.Rngs, config: DecoderConfig, sparse_layer: int, lora: LoraConfig | None = None):
        width, vocab = config.hidden_size, config.vocab_size
        self.embedding = param(rngs, (vocab, width), ("vocab", "embed"), normal(config.initializer_range))
        self.shallow = stack(rngs, sparse_layer, lambda r: DecoderLayer(r, config, lora))
        self.deep = stack(rngs, config.num_layers - sparse_layer, lambda r: DecoderLayer(r, config, lora))
        self.final_norm = RmsNorm(rngs, width, config.norm_eps)
        tied = config.tie_embeddings
        self.head = None if tied else Linear(rngs, width, vocab, ("embed", "vocab"), std=config.initializer_range)

    def embed(self, tokens: Int[Array, "B S"], dtype: jnp.dtype) -> Float[Array, "B S D"]:
        table = self.embedding[...].astype(dtype)
        if tokens.size >= table.shape[0]:
            table = constrain(table, "vocab", "embed")  # the table travels to the rows, which are more
        return constrain(table[tokens], "batch", "seq", "embed")

    def head_kernel(self, dtype: jnp.dtype) -> Float[Array, "D V"]:
        """The vocabulary head as a matrix, for whoever multiplies by it piece by piece."""
        kernel = self.embedding[...].T if self.head is None else self.head.kernel[...]
        return kernel.astype(dtype)

    def logits(self, hidden: Float[Array, "*B D"], *, in_pieces: bool = False) -> Float[Array, "*B V"]:
        """float32 vocabulary logits of the residual stream after the last layer; `in_pieces` as in `run_stack`."""
        x = self.final_norm(hidden)
        if self.head is None:
            return jnp.einsum("...d,vd->...v", x, self.embedding[...].astype(x.dtype)).astype(jnp.float32)
        if in_pieces:
            return multiply(x, kernel_in_pieces(self.head.kernel[...])).astype(jnp.float32)
        return self.head(x).astype(jnp.float32)


def run_stack(
    layers: DecoderLayer,
    hidden: Float[Array, "B S D"],
    by: Rope,
    attend: Attend,
    *,
    capacity: int | None = None,
    trace: bool = False,
    watch: Watch | None = None,
    remat: Remat = "none",
    in_pieces: bool = False,
) -> StackOutput:
    """Runs one stack by `lax.scan`.

    Args:
        layers: stacked layers.
        hidden: residual stream that enters the stack.
        by: rotation of each position.
        attend: who attends to what.
        capacity: keys and values are padded to it layer by layer, so that a cache is never copied; None: they are
            not kept.
        trace: also return the residual stream after every layer.
        watch: also return what this makes of every layer's rotated queries and keys.
        remat: what a backward pass need not compute again.
        in_pieces: multiply by large weights where they lie in their stack, see `nn.pieces`: for few tokens on a CPU.
    """

    def body(carry: tuple[Array, Array], layer: DecoderLayer) -> tuple[tuple[Array, Array], tuple[Any, ...]]:
        x, index = carry
        with jax.named_scope("attention"):
            query, key, value = layer.attention.project(layer.attention_norm(x), by)
            x = x + layer.attention.merge(attend(query, key, value, index))
        with jax.named_scope("mlp"):
            x = constrain(x + layer.mlp(layer.mlp_norm(x)), "batch", "seq", "embed")
        watched = None if watch is None else watch(query, key)
        key, value = (None if capacity is None else _pad(kept, capacity - x.shape[1]) for kept in (key, value))
        return (x, index + 1), (key, value, x if trace else None, watched)

    # Counted, not scanned over: cutting a number out of an array of them would be a kernel of its own in every layer.
    carry, count = (hidden, jnp.zeros((), jnp.int32)), num_layers(layers)
    if in_pieces:
        (hidden, _), kept = jax.lax.scan(lambda c, _: body(c, layer_in_pieces(layers, c[1])), carry, None, count)
    else:
        (hidden, _), kept = jax.lax.scan(_remat(body, remat), carry, layers, count)
    key, value, traced, watched = kept
    return StackOutput(hidden, key, value, traced, watched)


def _remat(body: Callable[..., Any], remat: Remat) -> Callable[..., Any]:
    match remat:
        case "none":
            return body
        case "full":
            return jax.checkpoint(body, prevent_cse=False)  # a scan's body has nothing to share with its own copy
        case "dots":
            policy = jax.checkpoint_policies.save_from_both_policies(
                jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
                jax.checkpoint_policies.save_only_these_names(*RESIDUALS),
            )
            return jax.checkpoint(body, prevent_cse=False, policy=policy)


def _pad(x: Float[Array, "B G S E"], room: int) -> Float[Array, "B G C E"]:
    return jnp.pad(x, ((0, 0), (0, 0), (0, room), (0, 0))) if room else x
