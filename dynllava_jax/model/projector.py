"""Projectors: tower features into the decoder's width.

*B leading axes, P features of one image, C tower features, Q image tokens, D decoder features.
"""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from flax import nnx
from jaxtyping import Array, Float

from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.vision import IdentityProjector, MlpProjector, TokenPackerProjector
from dynllava_jax.model.token_packer import TokenPacker
from dynllava_jax.nn.linear import Linear, gelu

Levels = Sequence[Array] | None
"""Hidden states of the tower [*B, P, C] that TokenPacker packs; the other projectors leave them alone."""


@runtime_checkable
class Projector(Protocol):
    def __call__(self, features: Float[Array, "*B P C"], levels: Levels = None) -> Float[Array, "*B Q D"]: ...


class Identity(nnx.Module):
    """Official `identity`."""

    def __call__(self, features: Float[Array, "*B P C"], levels: Levels = None) -> Float[Array, "*B P C"]:
        del levels
        return features


class MlpProjection(nnx.Module):
    """Linear layers with exact GELU between them (official `linear`, `mlpNx_gelu`)."""

    def __init__(self, rngs: nnx.Rngs, width: int, outputs: int, depth: int):
        self.layers = nnx.List(
            [
                Linear(rngs, width, outputs, (None, "embed"), bias=True),
                *(Linear(rngs, outputs, outputs, ("mlp", "embed"), bias=True) for _ in range(depth - 1)),
            ]
        )

    def __call__(self, features: Float[Array, "*B P C"], levels: Levels = None) -> Float[Array, "*B P D"]:
        del levels
        first, *others = self.layers
        x = first(features)
        for layer in others:
            x = layer(gelu(x))
        return x


def make_projector(rngs: nnx.Rngs, config: ModelConfig) -> Projector:
    """The projector that `config.projector` names, with freshly initialised parameters."""
    width, outputs = config.vision.hidden_size, config.decoder.hidden_size
    match config.projector:
        case IdentityProjector():
            return Identity()
        case MlpProjector(depth):
            return MlpProjection(rngs, width, outputs, depth)
        case TokenPackerProjector() as packer:
            return TokenPacker(rngs, packer, config.vision.grid, width, outputs)
