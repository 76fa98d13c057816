"""A decoder layer for one new token of each sample, by four fused products and the attention between them.

B batch, D hidden size, H query heads, G key/value heads, E head dimension, L layers of the stack.
"""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from jaxtyping import Array, Float, Int

from dynllava_jax.errors import InputError
from dynllava_jax.kernels.products import Norm, Products
from dynllava_jax.nn.attention import Attention
from dynllava_jax.nn.linear import Linear
from dynllava_jax.nn.mlp import GatedMlp
from dynllava_jax.nn.norm import RmsNorm
from dynllava_jax.nn.rope import Rope


@runtime_checkable
class Layers(Protocol):
    """A decoder's layers, stacked (`decoder.DecoderLayer`)."""

    attention_norm: RmsNorm
    attention: Attention
    mlp_norm: RmsNorm
    mlp: GatedMlp


def fused_layer(
    products: Products, layers: Layers, by: Rope, attend: Callable[[Array, Array, Array, Array], Array]
) -> Callable[[Float[Array, "B 1 D"], Int[Array, ""]], tuple[Array, Array, Array, Array]]:
    """What runs the layer of an index on a residual stream.

    It gives the stream after the layer, [B 1 D], and what was attended with: rotated query [B H 1 E], rotated key
    [B G 1 E] and value [B G 1 E].

    Args:
        products: the kernels.
        layers: of the stack.
        by: rotation of each token.
        attend: as in `decoder.run_stack`.

    Raises:
        InputError: from the function: products that the kernels do not serve.
    """
    attention, mlp, head_dim = layers.attention, layers.mlp, layers.attention.head_dim

    def run(hidden: Float[Array, "B 1 D"], layer: Int[Array, ""]) -> tuple[Array, Array, Array, Array]:
        x = hidden[:, 0]
        try:
            products.check(x.shape[0], x.dtype, head_dim)
            weights = [_kernel(linear, x) for linear in (attention.query, attention.key, attention.value)]
            out, gate, up, down = (_kernel(linear, x) for linear in (attention.out, mlp.gate, mlp.up, mlp.down))
        except NotImplementedError as error:
            raise InputError(f"The fused products do not serve this: {error}. Leave them out.") from error
        turned = products.rotated(x, _norm(layers.attention_norm), weights, by.cos[:, 0], by.sin[:, 0], layer)
        query, key, value = (each.reshape(x.shape[0], -1, 1, head_dim) for each in turned)
        attended = attend(query, key, value, layer).reshape(x.shape[0], -1)
        x = products.added(x, attended, out, layer)
        x = products.added(x, products.gated(x, _norm(layers.mlp_norm), gate, up, layer), down, layer)
        return x[:, None], query, key, value

    return run


def _norm(norm: RmsNorm) -> Norm:
    return Norm(norm.scale[...], norm.eps)


def _kernel(linear: Linear, x: Float[Array, "B D"]) -> Float[Array, "L I O"]:
    if linear.bias is not None or linear.lora_a is not None:
        raise NotImplementedError("a product has a bias or adapters")
    kernel = linear.kernel[...]
    if kernel.dtype != x.dtype:
        raise NotImplementedError(f"weights are {kernel.dtype.name}, computation is {x.dtype.name}")
    return kernel
