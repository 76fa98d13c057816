"""A user's own selectors, as they would stand in a user's own package."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dynllava_jax.nn.linear import Linear
from dynllava_jax.sparsify.selector import ImageView, Merged, SelectorContext, TokenView


class ClsAttention(nnx.Module):
    """The patches that CLS looks at most, with a learned weight for each head."""

    wants_attention = True
    places = ("tower",)

    def __init__(self, rngs: nnx.Rngs, context: SelectorContext):
        self.weight = Linear(rngs, 4, 1, (None, None))

    def __call__(self, view: ImageView) -> Float[Array, "B M N"]:
        assert view.attention is not None
        return self.weight(jnp.moveaxis(view.attention, 1, -1))[..., 0]


class MeanOfNeighbours(nnx.Module):
    """Merges N tokens into K by the mean of each stretch."""

    wants_attention = False

    def __init__(self, rngs: nnx.Rngs, context: SelectorContext):
        self.kept = context.kept

    def __call__(self, view: ImageView) -> Merged:
        batch, images, count, width = view.features.shape
        stretch = count // self.kept
        parts = view.features[:, :, : stretch * self.kept].reshape(batch, images, self.kept, stretch, width)
        index = jnp.broadcast_to(stretch * jnp.arange(self.kept), (batch, images, self.kept))
        return Merged(tokens=parts.mean(axis=3), index=index)


class Backwards(MeanOfNeighbours):
    """The same, the last stretch first."""

    def __call__(self, view: ImageView) -> Merged:
        merged = super().__call__(view)
        return Merged(merged.tokens[:, :, ::-1], merged.index[:, :, ::-1])


class Loud(nnx.Module):
    """Text tokens with a large hidden state."""

    def __init__(self, rngs: nnx.Rngs, context: SelectorContext):
        self.limit = context.width**0.5

    def __call__(self, view: TokenView) -> Float[Array, "B T"]:
        return jnp.linalg.norm(view.hidden, axis=-1) - self.limit


class OfFlax(nnx.Module):
    """Made of a module of Flax, whose parameters know no axis names; for images and for text."""

    wants_attention = False

    def __init__(self, rngs: nnx.Rngs, context: SelectorContext):
        self.linear = nnx.Linear(context.width, 2, rngs=rngs)

    def logits(self, x: Float[Array, "*rows C"]) -> Float[Array, "*rows 2"]:
        return self.linear(x)

    def __call__(self, view: ImageView | TokenView) -> jax.Array:
        logits = self.logits(view.hidden if isinstance(view, TokenView) else view.features)
        return logits[..., 0] - logits[..., 1]


class WrongShape(nnx.Module):
    wants_attention = False

    def __init__(self, rngs: nnx.Rngs, context: SelectorContext):
        pass

    def __call__(self, view: ImageView) -> jax.Array:
        return view.features[..., :1, 0]


class WantsAttention(WrongShape):
    wants_attention = True


class HalfPrecision(WrongShape):
    def __call__(self, view: ImageView) -> jax.Array:
        return view.features[..., 0].astype(jnp.bfloat16)


class WrongMerge(MeanOfNeighbours):
    def __call__(self, view: ImageView) -> Merged:
        merged = super().__call__(view)
        return Merged(merged.tokens[:, :, 1:], merged.index[:, :, 1:])


class NotCallable(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, context: SelectorContext):
        pass


class NeedsMore(Loud):
    def __init__(self, rngs: nnx.Rngs, context: SelectorContext, temperature: float):
        super().__init__(rngs, context)


def plain_function(rngs: nnx.Rngs, context: SelectorContext) -> dict[str, float]:
    return {}


class NoModule:
    def __init__(self, rngs: nnx.Rngs, context: SelectorContext):
        pass


NUMBER = 3
