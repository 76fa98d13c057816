"""The composition: tower, projector, decoder and the selectors between them.

B batch, S sequence, M images per sample, BM all images of a batch, H W pixels, P image tokens of one image, N tokens
that a selector sees of it, K kept of N, C tower features (at a selector: those that it sees), D decoder features.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.training import LoraConfig
from dynllava_jax.model.decoder import Decoder
from dynllava_jax.model.projector import make_projector
from dynllava_jax.model.vision import VisionTower
from dynllava_jax.nn.constrain import constrain
from dynllava_jax.sparsify.select import rank_of, top_k
from dynllava_jax.sparsify.selector import (
    PLACES,
    ImageSelector,
    ImageView,
    Merged,
    Place,
    SelectorContext,
    check_result,
    find_selector,
    load_selector,
)


class ImageTokens(NamedTuple):
    """Image features on their way into the decoder.

    Attributes:
        features: one row per slot of the sequence.
        origin: which patch of the tower's output (or cell of TokenPacker's) each row stands for.
    """

    features: Float[Array, "B M P D"]
    origin: Int[Array, "B M P"]


class DynamicLlava(nnx.Module):
    """Dynamic-LLaVA (official `DynamicLlavaLlamaForCausalLM`); a plain LLaVA when no selector is configured.

    With `lora` the decoder's linear layers carry low-rank adapters, for training.
    """

    def __init__(self, rngs: nnx.Rngs, config: ModelConfig, lora: LoraConfig | None = None):
        self.vision = VisionTower(rngs, config)
        self.projector = make_projector(rngs, config)
        self.decoder = Decoder(rngs, config.decoder, config.sparsity.sparse_layer, lora)
        self.tower_selector = _selector(rngs, config, "tower")
        self.embed_selector = _selector(rngs, config, "embed")
        self.image_predictor = _selector(rngs, config, "image")
        self.output_predictor = _selector(rngs, config, "output")
        self.instruct_predictor = _selector(rngs, config, "instruct")
        self.config = config

    def image_tokens(
        self, images: Float[Array, "B M H W 3"], present: Bool[Array, "B M"], keys: Key[Array, " B"], dtype: jnp.dtype
    ) -> ImageTokens:
        """What enters the decoder for each image: tower, selection, projector, selection."""
        batch, slots = present.shape
        pixels = constrain(images.reshape(batch * slots, *images.shape[2:]).astype(dtype), "batch", None, None, None)
        wants = self.tower_selector is not None and self.tower_selector.wants_attention
        seen = self.vision(pixels, attention=wants)
        features, origin = seen.features, None
        if self.tower_selector is not None:
            view = _view(features, present, keys, seen.cls_attention)
            features, origin = self._reduce(self.tower_selector, "tower", view)
        features = self.projector(features, seen.levels)
        if origin is None:
            origin = jnp.broadcast_to(jnp.arange(features.shape[1]), features.shape[:2])
        if self.embed_selector is not None:
            features, index = self._reduce(self.embed_selector, "embed", _view(features, present, keys, None))
            origin = jnp.take_along_axis(origin, index, axis=1)
        return ImageTokens(
            features.reshape(batch, slots, *features.shape[1:]), origin.reshape(batch, slots, origin.shape[1])
        )

    def embed(
        self,
        tokens: Int[Array, "B S"],
        is_image: Bool[Array, "B S"],
        images: Float[Array, "B M P D"] | None,
        dtype: jnp.dtype,
        *,
        untrained: int | None = None,
    ) -> Float[Array, "B S D"]:
        """Token embeddings with the image features in their slots, image after image in the order of the text.

        No gradient reaches the embedding of the token `untrained` (the padding token, as torch's `padding_idx`).
        """
        text = self.decoder.embed(tokens, dtype)
        if untrained is not None:
            text = jnp.where((tokens == untrained)[..., None], jax.lax.stop_gradient(text), text)
        if images is None:
            return text
        flat = images.reshape(images.shape[0], -1, images.shape[-1]).astype(dtype)
        index = jnp.minimum(rank_of(is_image), flat.shape[1] - 1)
        placed = jnp.take_along_axis(flat, index[..., None], axis=1)
        return constrain(jnp.where(is_image[..., None], placed, text), "batch", "seq", "embed")

    def _reduce(
        self, selector: ImageSelector, place: Place, view: ImageView
    ) -> tuple[Float[Array, "BM K C"], Int[Array, "BM K"]]:
        context = selector_context(self.config, place)
        chosen = check_result(selector, context, view)
        if isinstance(chosen, Merged):
            tokens, index = chosen.tokens, chosen.index
        else:
            index = top_k(chosen, context.kept)
            tokens = jnp.take_along_axis(view.features, index[..., None], axis=2)
        return tokens.reshape(-1, *tokens.shape[2:]), index.reshape(-1, context.kept)


def _view(
    features: Float[Array, "BM N C"], present: Bool[Array, "B M"], keys: Key[Array, " B"], attention: Array | None
) -> ImageView:
    batch, slots = present.shape
    by_sample = features.reshape(batch, slots, *features.shape[1:])
    if attention is not None:
        attention = attention.reshape(batch, slots, *attention.shape[1:]).swapaxes(1, 2)
    return ImageView(by_sample, present, None, None, None, attention, keys)


def selector_context(config: ModelConfig, place: Place) -> SelectorContext:
    """What the selector at `place` is built with."""
    sparsity = config.sparsity
    width = config.vision.hidden_size if place == "tower" else config.decoder.hidden_size
    predictor = sparsity.text_predictor if place in ("output", "instruct") else sparsity.image_predictor
    count = kept = 0
    if place == "tower":
        count = config.vision.num_features
    elif place == "embed":
        count = config.projected_tokens
    elif place == "image":
        count = config.image_tokens
    if count:
        kept = sparsity.kept(place, count)
    rate = getattr(sparsity, f"{place}_keep_rate")
    return SelectorContext(width, count, kept, rate, predictor, place, config.decoder.initializer_range)


def selector_classes(config: ModelConfig) -> tuple[Any, ...]:
    """What builds the model's selectors at present: a name means another class once a notebook's cell is run again."""
    found = []
    for place in PLACES:
        if (name := getattr(config.sparsity, f"{place}_selector")) is not None:
            found.append(find_selector(name, selector_context(config, place)))
    return tuple(found)


def _selector(rngs: nnx.Rngs, config: ModelConfig, place: Place) -> Any:
    name = getattr(config.sparsity, f"{place}_selector")
    return None if name is None else load_selector(name, selector_context(config, place), rngs)
