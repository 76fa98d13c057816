"""Selectors that learn nothing: what a learned one has to beat.

B batch, M images per sample, N tokens of one image, T text tokens.
"""

from fractions import Fraction
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from dynllava_jax.sparsify.selector import PLACES, ImageView, SelectorContext, TokenView


class RandomImage(nnx.Module):
    """K image tokens at random, from the sample's own seed: neighbours and padding have no say."""

    wants_attention: ClassVar[bool] = False

    def __init__(self, rngs: nnx.Rngs, context: SelectorContext):
        del rngs
        self.place = PLACES.index(context.place)

    def __call__(self, view: ImageView) -> Float[Array, "B M N"]:
        _, images, count, _ = view.features.shape

        def one_sample(key: Key[Array, ""]) -> Float[Array, "M N"]:
            keys = _fold(jax.random.fold_in(key, self.place), jnp.arange(images))
            return jax.vmap(lambda key: jax.random.uniform(key, (count,)))(keys)

        return jax.vmap(one_sample)(view.keys)


class RandomText(nnx.Module):
    """Each token kept with probability `keep_rate`, by its position: however the text is cut into calls."""

    def __init__(self, rngs: nnx.Rngs, context: SelectorContext):
        del rngs
        self.place = PLACES.index(context.place)
        self.keep_rate = context.keep_rate

    def __call__(self, view: TokenView) -> Float[Array, "B T"]:
        keys = jax.vmap(lambda key: jax.random.fold_in(key, self.place))(view.keys)
        keys = jax.vmap(_fold)(keys, view.positions)
        keep_rate = self.keep_rate if view.keep_rate is None else view.keep_rate
        return keep_rate - jax.vmap(jax.vmap(jax.random.uniform))(keys)


class StrideImage(nnx.Module):
    """K of N image tokens at even distances, the first and last equally far from the ends."""

    wants_attention: ClassVar[bool] = False

    def __init__(self, rngs: nnx.Rngs, context: SelectorContext):
        del rngs, context

    def __call__(self, view: ImageView) -> Float[Array, "B M N"]:
        count, kept = view.features.shape[2], view.kept
        scores = np.zeros(count, np.float32)
        scores[(2 * np.arange(kept) + 1) * count // (2 * kept)] = 1.0
        return jnp.broadcast_to(jnp.asarray(scores), view.features.shape[:3])


class StrideText(nnx.Module):
    """Token i is kept iff floor((i+1)·r) > floor(i·r): a share r of every stretch of text."""

    def __init__(self, rngs: nnx.Rngs, context: SelectorContext):
        del rngs
        self.keep_rate = context.keep_rate

    def __call__(self, view: TokenView) -> Float[Array, "B T"]:
        keep_rate = self.keep_rate if view.keep_rate is None else view.keep_rate
        # A fraction, because i·r in float32 falls on the wrong side of whole numbers.
        rate = Fraction(keep_rate).limit_denominator(10_000)
        phase = view.positions % rate.denominator
        before = phase * rate.numerator // rate.denominator
        after = (phase + 1) * rate.numerator // rate.denominator
        return jnp.where(after > before, 1.0, -1.0)


def _fold(key: Key[Array, ""], numbers: jax.Array) -> Key[Array, " T"]:
    return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)
