"""A user's own selectors for every place, as they would stand in a user's own package."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dynllava_jax.nn.linear import Linear
from dynllava_jax.sparsify.selector import ImageView, Merged, SelectorContext, TokenView


class Cls(nnx.Module):
    """Tower: the patches that CLS looks at most."""

    wants_attention = True
    places = ("tower",)

    def __init__(self, rngs: nnx.Rngs, context: SelectorContext):
        pass

    def __call__(self, view: ImageView) -> Float[Array, "B M N"]:
        assert view.attention is not None
        return view.attention.mean(axis=1)


class Norm(nnx.Module):
    """Embed: the longest projected features."""

    wants_attention = False

    def __init__(self, rngs: nnx.Rngs, context: SelectorContext):
        pass

    def __call__(self, view: ImageView) -> Float[Array, "B M N"]:
        return jnp.linalg.norm(view.features.astype(jnp.float32), axis=-1)


class LastQuery(nnx.Module):
    """Image: what the prompt's last token attends to, as FastV ranks."""

    wants_attention = True
    places = ("image",)

    def __init__(self, rngs: nnx.Rngs, context: SelectorContext):
        pass

    def __call__(self, view: ImageView) -> Float[Array, "B M N"]:
        assert view.attention is not None
        return view.attention.mean(axis=1)


class Question(nnx.Module):
    """Image: the tokens most like the mean of the question; uses spans and the whole sequence, with a weight."""

    wants_attention = False
    places = ("image",)

    def __init__(self, rngs: nnx.Rngs, context: SelectorContext):
        self.query = Linear(rngs, context.width, context.width, ("embed", None), std=0.3)

    def __call__(self, view: ImageView) -> Float[Array, "B M N"]:
        assert view.hidden is not None
        assert view.question is not None
        asked = view.question[..., None]
        mean = jnp.sum(jnp.where(asked, view.hidden, 0), axis=1) / jnp.maximum(jnp.sum(asked, axis=1), 1)
        return jnp.einsum("bmnc,bc->bmn", view.features, self.query(mean))


class Pairs(nnx.Module):
    """Any image place: merges even stretches of tokens into their mean; the first one's place is taken."""

    wants_attention = False

    def __init__(self, rngs: nnx.Rngs, context: SelectorContext):
        pass

    def __call__(self, view: ImageView) -> Merged:
        batch, images, count, width = view.features.shape
        size = count // view.kept
        used = view.features[:, :, : size * view.kept]
        index = jnp.broadcast_to(size * jnp.arange(view.kept), (batch, images, view.kept))
        return Merged(used.reshape(batch, images, view.kept, size, width).mean(axis=3), index)


class EveryThird(nnx.Module):
    """Output, instruct: drops every third token, by its position."""

    def __init__(self, rngs: nnx.Rngs, context: SelectorContext):
        assert context.judges_text

    def __call__(self, view: TokenView) -> Float[Array, "B T"]:
        return jnp.where(view.positions % 3 == 2, -1.0, 1.0)
