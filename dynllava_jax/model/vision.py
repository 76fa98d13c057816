"""The CLIP vision tower: pictures in, patch features out; only the layers that someone reads.

Reference: official `CLIPVisionTower` / transformers `CLIPVisionModel`.

N images, Y X pixels, P patches of one image, T = 1 + P tokens (CLS first), Q of them that ask, C features, H heads,
E head dimension, L hidden states.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.vision import TokenPackerProjector, VisionConfig
from dynllava_jax.errors import InputError
from dynllava_jax.nn.constrain import constrain
from dynllava_jax.nn.linear import Linear, gelu, quick_gelu
from dynllava_jax.nn.mlp import Mlp
from dynllava_jax.nn.norm import LayerNorm
from dynllava_jax.nn.param import normal, param
from dynllava_jax.nn.stack import stack

_ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu}


class VisionOutput(NamedTuple):
    """What leaves the tower, in the pixels' dtype.

    `features` is the selected hidden state, with CLS when `select_feature` is `cls_patch` (P then counts it).
    `levels` are the hidden states that TokenPacker reads, without CLS. `hidden` (layers used + 1, 0 being the
    embedding after pre-norm) and `cls_attention` (CLS's weight on each feature, float32, in the layer whose output
    was selected) are there on request.
    """

    features: Float[Array, "N P C"]
    levels: tuple[Float[Array, "N P C"], ...] | None
    hidden: Float[Array, "L N T C"] | None
    cls_attention: Float[Array, "N H P"] | None


class VisionTower(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, config: ModelConfig):
        vision = config.vision
        width = vision.hidden_size
        self.patch_embedding = Linear(rngs, vision.patch_size**2 * 3, width, (None, "embed"))
        self.class_embedding = param(rngs, (width,), ("embed",), normal(0.02))
        self.position_embedding = param(rngs, (1 + vision.num_patches, width), (None, "embed"), normal(0.02))
        self.pre_norm = LayerNorm(rngs, width, vision.norm_eps)
        # Where the embedding itself is read there is no layer, and arrays of none would have no leaf in a checkpoint.
        self.layers = stack(rngs, config.layers_used, lambda rngs: _Layer(rngs, vision)) if config.layers_used else None
        self.config = vision
        self.num_layers = config.layers_used
        self.levels = config.projector.levels if isinstance(config.projector, TokenPackerProjector) else None

    def __call__(
        self, images: Float[Array, "N Y X 3"], *, hidden: bool = False, attention: bool = False
    ) -> VisionOutput:
        """Runs the layers that are used on normalised pixels [N, image_size, image_size, 3].

        Raises:
            InputError: `attention` is asked for, and `select_layer` names the embedding, before any layer.
        """
        selected = self.config.select_index
        wanted = {selected, *(self.levels or ()), *(range(self.num_layers + 1) if hidden else ())}
        if attention:
            if selected == 0:
                raise InputError("The attention of CLS needs a layer, and vision.select_layer names none.")
            wanted.add(selected - 1)
        states = self._states(self._embed(images), wanted)
        first = 0 if self.config.select_feature == "cls_patch" else 1
        weights = self._layer(selected - 1).cls_attention(states[selected - 1]) if attention else None
        return VisionOutput(
            features=states[selected][:, first:],
            levels=None if self.levels is None else tuple(states[level][:, 1:] for level in self.levels),
            hidden=jnp.stack([states[index] for index in range(self.num_layers + 1)]) if hidden else None,
            cls_attention=None if weights is None else weights[:, :, first:],
        )

    def _embed(self, images: Float[Array, "N Y X 3"]) -> Float[Array, "N T C"]:
        count, grid, size = images.shape[0], self.config.grid, self.config.patch_size
        # A convolution whose stride is its width is a linear map of each patch.
        patches = images[:, : grid * size, : grid * size].reshape(count, grid, size, grid, size, 3)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(count, grid * grid, size * size * 3)
        x = self.patch_embedding(patches)
        cls = jnp.broadcast_to(self.class_embedding[...].astype(x.dtype), (count, 1, x.shape[-1]))
        x = jnp.concatenate([cls, x], axis=1) + self.position_embedding[...].astype(x.dtype)
        return constrain(self.pre_norm(x), "batch", None, "embed")

    def _states(self, x: Float[Array, "N T C"], wanted: set[int]) -> dict[int, Float[Array, "N T C"]]:
        """The hidden states of these indices, one loop between two of them, so that no other is held."""
        states, done = {}, 0
        for index in sorted(wanted):
            if index > done:
                x, _ = jax.lax.scan(lambda x, i: (self._layer(i)(x), None), x, jnp.arange(done, index))
            states[index], done = x, index
        return states

    def _layer(self, index: jax.Array | int) -> "_Layer":
        # Indexed inside the loop: a slice of the stacked weights outside it would be a copy.
        return jax.tree.map(lambda leaf: leaf[index], self.layers)


class _Layer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs, config: VisionConfig):
        self.norm1 = LayerNorm(rngs, config.hidden_size, config.norm_eps)
        self.attention = _SelfAttention(rngs, config.hidden_size, config.num_heads)
        self.norm2 = LayerNorm(rngs, config.hidden_size, config.norm_eps)
        self.mlp = Mlp(rngs, config.hidden_size, config.intermediate_size, _ACTIVATIONS[config.activation])

    def __call__(self, x: Float[Array, "N T C"]) -> Float[Array, "N T C"]:
        x = x + self.attention(self.norm1(x))
        return constrain(x + self.mlp(self.norm2(x)), "batch", None, "embed")

    def cls_attention(self, x: Float[Array, "N T C"]) -> Float[Array, "N H T"]:
        """CLS's weights on all tokens of this layer's input."""
        x = self.norm1(x)
        return self.attention.weights(x[:, :1], x)[:, :, 0]


class _SelfAttention(nnx.Module):
    """Every token attends to every token of its image."""

    def __init__(self, rngs: nnx.Rngs, width: int, num_heads: int):
        self.query = Linear(rngs, width, width, ("embed", "heads"), bias=True)
        self.key = Linear(rngs, width, width, ("embed", "heads"), bias=True)
        self.value = Linear(rngs, width, width, ("embed", "heads"), bias=True)
        self.out = Linear(rngs, width, width, ("heads", "embed"), bias=True)
        self.num_heads = num_heads

    def __call__(self, x: Float[Array, "N T C"]) -> Float[Array, "N T C"]:
        weights = self.weights(x, x).astype(x.dtype)
        return self.out(jnp.einsum("nhqk,nkhe->nqhe", weights, self._heads(self.value(x))).reshape(x.shape))

    def weights(self, queries: Float[Array, "N Q C"], x: Float[Array, "N T C"]) -> Float[Array, "N H Q T"]:
        query, key = self._heads(self.query(queries)), self._heads(self.key(x))
        scores = jnp.einsum("nqhe,nkhe->nhqk", query, key, preferred_element_type=jnp.float32)
        return jax.nn.softmax(scores * query.shape[-1] ** -0.5, axis=-1)

    def _heads(self, x: Float[Array, "N T C"]) -> Float[Array, "N T H E"]:
        return x.reshape(*x.shape[:2], self.num_heads, -1)
