"""The learned predictors: two logits for each token, channel 0 = keep, channel 1 = drop.

Each is itself a selector (`sparsify.selector`), so that its parameters lie where a user's own would. Any kind may
serve any place; the official ones are the transformer over image tokens (`VisionPredictor`) and the MLP over text
tokens (`TextPredictor`).

*B leading axes, N tokens judged together, C features entering, D predictor width, D3 = 3·D.
"""

import abc
import itertools
from collections.abc import Callable, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dynllava_jax.config.sparsity import LinearPredictor, MlpPredictor, Predictor, TransformerPredictor
from dynllava_jax.nn.linear import Linear, gelu
from dynllava_jax.nn.mlp import Mlp
from dynllava_jax.nn.norm import LayerNorm
from dynllava_jax.nn.stack import stack
from dynllava_jax.sparsify.selector import ImageView, SelectorContext, TokenView


def learned(rngs: nnx.Rngs, context: SelectorContext) -> "Scorer":
    """The predictor that `context.predictor` configures."""
    return _SCORERS[type(context.predictor)](rngs, context)


class Scorer(nnx.Module, abc.ABC):
    """A predictor as a selector: the margin logit0 − logit1, in float32, is the score of a token.

    A difference and not the log-softmax of the official top-k: that one saturates at 0 and makes ties; the order
    is the same.
    """

    wants_attention: ClassVar[bool] = False

    def __call__(self, view: ImageView | TokenView) -> Float[Array, "*B N"]:
        logits = self.logits(view.features if isinstance(view, ImageView) else view.hidden).astype(jnp.float32)
        return logits[..., 0] - logits[..., 1]

    @abc.abstractmethod
    def logits(self, x: Float[Array, "*B N C"]) -> Float[Array, "*B N 2"]:
        """Keep and drop logits, in the dtype of `x`."""


class LinearScorer(Scorer):
    def __init__(self, rngs: nnx.Rngs, context: SelectorContext):
        self.norm = LayerNorm(rngs, context.width)
        self.score = Linear(rngs, context.width, 2, ("embed", None), bias=True, std=context.initializer_range)

    def logits(self, x: Float[Array, "*B N C"]) -> Float[Array, "*B N 2"]:
        return self.score(self.norm(x))


class MlpScorer(Scorer):
    """Official `TextPredictor`: strictly per token."""

    def __init__(self, rngs: nnx.Rngs, context: SelectorContext):
        assert isinstance(context.predictor, MlpPredictor)
        width = context.predictor.width
        self.norm = LayerNorm(rngs, context.width)
        self.layers = _chain(rngs, context.initializer_range, "embed", context.width, width, width // 2, width // 4, 2)

    def logits(self, x: Float[Array, "*B N C"]) -> Float[Array, "*B N 2"]:
        return _run_chain(self.layers, self.norm(x))


class TransformerScorer(Scorer):
    """Official `VisionPredictor`: encoder blocks over the N tokens, then each token beside the mean of all.

    At a text place every token is judged by itself (N = 1): a sequence's padding and the way in which decoding
    cuts it into steps must not change a decision.
    """

    def __init__(self, rngs: nnx.Rngs, context: SelectorContext):
        config = context.predictor
        assert isinstance(config, TransformerPredictor)
        self.input_norm = LayerNorm(rngs, context.width)
        std = context.initializer_range
        self.input_proj = Linear(rngs, context.width, config.width, ("embed", "predictor"), bias=True, std=std)
        self.blocks = stack(rngs, config.depth, lambda rngs: _Block(rngs, config, std))
        self.score = _chain(rngs, std, "predictor", config.width, config.width // 2, config.width // 4, 2)
        self.alone = context.judges_text

    def logits(self, x: Float[Array, "*B N C"], policy: Float[Array, "*B N"] | None = None) -> Float[Array, "*B N 2"]:
        """`policy` (1 keep, 0 drop) silences tokens, which stay visible as zero vectors; None is all ones.

        Only a comparison with the official module passes one: the model itself never does.
        """
        if self.alone:
            return self._together(x[..., None, :], None)[..., 0, :]
        return self._together(x, policy)

    def _together(self, x: Float[Array, "*B N C"], policy: Float[Array, "*B N"] | None) -> Float[Array, "*B N 2"]:
        y = gelu(self.input_proj(self.input_norm(x)))
        weight = jnp.ones((*y.shape[:-1], 1), y.dtype) if policy is None else policy[..., None].astype(y.dtype)
        y, _ = jax.lax.scan(lambda y, block: (block(y), None), y * weight, self.blocks)
        local, pooled = jnp.split(y, 2, axis=-1)
        pooled = jnp.sum((pooled * weight).astype(jnp.float32), axis=-2, keepdims=True)
        pooled = (pooled / jnp.sum(weight.astype(jnp.float32), axis=-2, keepdims=True)).astype(y.dtype)
        return _run_chain(self.score, jnp.concatenate([local, jnp.broadcast_to(pooled, local.shape)], axis=-1))


class _Block(nnx.Module):
    """A pre-norm encoder block: attention among the N tokens without mask or positions, then an MLP."""

    def __init__(self, rngs: nnx.Rngs, config: TransformerPredictor, std: float):
        self.norm1 = LayerNorm(rngs, config.width)
        self.qkv = Linear(rngs, config.width, 3 * config.width, ("embed", "predictor"), std=std)
        self.out = Linear(rngs, config.width, config.width, ("predictor", "embed"), bias=True, std=std)
        self.norm2 = LayerNorm(rngs, config.width)
        self.mlp = Mlp(rngs, config.width, config.mlp_width, gelu, std)
        self.num_heads = config.num_heads

    def __call__(self, x: Float[Array, "*B N D"]) -> Float[Array, "*B N D"]:
        x = x + self.out(self._attend(self.qkv(self.norm1(x))))
        return x + self.mlp(self.norm2(x))

    def _attend(self, qkv: Float[Array, "*B N D3"]) -> Float[Array, "*B N D"]:
        *lead, count, packed = qkv.shape
        heads = qkv.reshape(*lead, count, 3, self.num_heads, packed // 3 // self.num_heads)
        query, key, value = heads[..., 0, :, :], heads[..., 1, :, :], heads[..., 2, :, :]
        scores = jnp.einsum("...nhe,...mhe->...hnm", query, key, preferred_element_type=jnp.float32)
        weights = jax.nn.softmax(scores * query.shape[-1] ** -0.5, axis=-1).astype(qkv.dtype)
        return jnp.einsum("...hnm,...mhe->...nhe", weights, value).reshape(*lead, count, packed // 3)


def _chain(rngs: nnx.Rngs, std: float, enters: str, *widths: int) -> Sequence[Linear]:
    axes = (enters, *("predictor" for _ in widths[2:]), None)
    return nnx.List(
        Linear(rngs, inputs, outputs, pair, bias=True, std=std)
        for (inputs, outputs), pair in zip(itertools.pairwise(widths), itertools.pairwise(axes), strict=True)
    )


def _run_chain(layers: Sequence[Linear], x: Float[Array, "*B C"]) -> Float[Array, "*B 2"]:
    *hidden, last = layers
    for layer in hidden:
        x = gelu(layer(x))
    return last(x)


_SCORERS: dict[type[Predictor], Callable[[nnx.Rngs, SelectorContext], Scorer]] = {
    LinearPredictor: LinearScorer,
    MlpPredictor: MlpScorer,
    TransformerPredictor: TransformerScorer,
}
