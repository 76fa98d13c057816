"""A decoder stack for one new token of each sample, by four fused products a layer and the attention between them.

B batch, D hidden size, H query heads, G key/value heads, E head dimension.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from dynllava_jax.errors import InputError
from dynllava_jax.kernels.products import Kept, Products, Stream
from dynllava_jax.model.decoder import Attend, DecoderLayer, StackOutput
from dynllava_jax.nn.rope import Rope
from dynllava_jax.nn.stack import num_layers


class _Carry(NamedTuple):
    stream: Stream
    kept: Kept
    index: Int[Array, ""]


def check_fused(products: Products, layers: DecoderLayer, rows: int, dtype: jnp.dtype) -> None:
    """Raises NotImplementedError for what the kernels do not serve; the layers may be shapes only.

    Args:
        products: the kernels.
        layers: stacked layers.
        rows: of a batch.
        dtype: of the computation.
    """
    attention, mlp = layers.attention, layers.mlp
    products.check(rows, dtype, attention.head_dim)
    for linear in (attention.query, attention.key, attention.value, attention.out, mlp.gate, mlp.up, mlp.down):
        if linear.bias is not None or linear.lora_a is not None:
            raise NotImplementedError("a product has a bias or adapters")
        if linear.kernel.dtype != dtype:
            raise NotImplementedError(f"weights are {linear.kernel.dtype.name}, computation is {dtype.name}")


def run_fused(
    products: Products,
    layers: DecoderLayer,
    hidden: Float[Array, "B 1 D"],
    by: Rope,
    attend: Attend,
    *,
    trace: bool = False,
) -> StackOutput:
    """What `decoder.run_stack` does with a capacity of 1, for residual streams of one token a sample.

    Args:
        products: the kernels.
        layers: stacked layers.
        hidden: residual stream that enters the stack.
        by: rotation of each token.
        attend: who attends to what.
        trace: also return the residual stream after every layer.

    Raises:
        InputError: the kernels do not serve this.
    """
    attention, mlp, head_dim = layers.attention, layers.mlp, layers.attention.head_dim
    before, between = layers.attention_norm, layers.mlp_norm
    x = hidden[:, 0]
    try:
        check_fused(products, layers, x.shape[0], x.dtype)
    except NotImplementedError as error:
        raise InputError(f"The fused products do not serve this: {error}. Leave them out.") from error
    weights = [linear.kernel[...] for linear in (attention.query, attention.key, attention.value)]
    out, gate, up, down = (linear.kernel[...] for linear in (attention.out, mlp.gate, mlp.up, mlp.down))

    def body(carry: _Carry, _: None) -> tuple[_Carry, Array | None]:
        stream, kept, index = carry
        rotation = by.cos[:, 0], by.sin[:, 0]
        *turned, kept = products.rotated(stream, before.eps, weights, *rotation, index, kept)
        query, key, value = (each.reshape(x.shape[0], -1, 1, head_dim) for each in turned)  # [B H 1 E], [B G 1 E] twice
        attended = attend(query, key, value, index).reshape(x.shape[0], -1)
        stream = products.added(stream, attended, out, index, between.scale[...])
        opened = products.gated(stream, between.eps, gate, up, index)
        stream = products.added(stream, opened, down, index, before.scale[...], ahead=1)
        return _Carry(stream, kept, index + 1), stream.x[:, None] if trace else None

    count = num_layers(layers)
    kept = Kept(*(jnp.zeros((count, x.shape[0], weight.shape[2]), x.dtype) for weight in weights[1:]))
    carry = _Carry(products.begin(x, before.scale[0]), kept, jnp.zeros((), jnp.int32))
    (stream, kept, _), traced = jax.lax.scan(body, carry, None, count)
    key, value = (each.reshape(count, x.shape[0], -1, 1, head_dim) for each in kept)
    return StackOutput(stream.x[:, None], key, value, traced, None)
