"""FastV (arXiv 2403.06764): image tokens ranked by the attention that they get.

B batch, M images per sample, N image tokens.
"""

from typing import ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dynllava_jax.sparsify.selector import ImagePlace, ImageView, SelectorContext


class FastV(nnx.Module):
    """The attention of the prompt's last token in layer `sparse_layer`, averaged over the heads.

    So the authors' code ranks after its layer K = `sparse_layer` (the text speaks of the attention of all tokens;
    pkunlp-icler/FastV issue 14). It learns nothing and needs no training: the model is the dense one.
    """

    wants_attention: ClassVar[bool] = True
    places: ClassVar[tuple[ImagePlace, ...]] = ("image",)

    def __init__(self, rngs: nnx.Rngs, context: SelectorContext):
        del rngs, context

    def __call__(self, view: ImageView) -> Float[Array, "B M N"]:
        assert view.attention is not None
        return jnp.mean(view.attention, axis=1)
