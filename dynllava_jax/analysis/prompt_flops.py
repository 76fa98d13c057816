"""What a prompt and its answer cost, from the configuration alone: FLOPs under the conventions in use, cache bytes.

A prompt passes the first layers whole and the others with the image tokens that are left. Text is never dropped; of
the answer the deep layers keep a share. Norms, softmax and activations are left out, as everywhere in `flops`.
"""

import dataclasses
from collections.abc import Callable, Mapping

from dynllava_jax.analysis.flops import Cost, Tokens, decoder_layer, predictor, projector, tower
from dynllava_jax.config.decoder import DecoderConfig
from dynllava_jax.config.model import ModelConfig


def exact(decoder: DecoderConfig, tokens: Tokens) -> float:
    """One layer: two operations for each multiply-add, attention without regard to the causal mask."""
    return decoder_layer(decoder, tokens).forward


def paper(decoder: DecoderConfig, tokens: Tokens) -> float:
    """One layer by the paper's equation 13, 32 N C² + 4 N² C: an MLP four times as wide as the model."""
    width = decoder.hidden_size
    return 32.0 * tokens * width**2 + 4.0 * tokens**2 * width


def fastv(decoder: DecoderConfig, tokens: Tokens) -> float:
    """One layer as FastV counts: multiply-adds, and two of the MLP's three matrices (4nd² + 2n²d + 2ndm)."""
    width, inner = decoder.hidden_size, decoder.intermediate_size
    return 4.0 * tokens * width**2 + 2.0 * tokens**2 * width + 2.0 * tokens * width * inner


CONVENTIONS: Mapping[str, Callable[[DecoderConfig, Tokens], float]] = {"exact": exact, "eq13": paper, "fastv": fastv}
"""Name -> cost of one layer for so many tokens; `fastv` counts multiply-adds, the others operations."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which image tokens a decoder sees.

    Attributes:
        layers: decoder layers that see all of them.
        tokens: image tokens of the prompt.
        kept: how many of them the other layers see.
        output_rate: share of the answer that those layers see.
    """

    layers: int
    tokens: int
    kept: int
    output_rate: float = 1.0

    def dense(self) -> "Selection":
        return dataclasses.replace(self, kept=self.tokens, output_rate=1.0)


def selection(model: ModelConfig, images: int = 1) -> Selection:
    """That of a model's configuration."""
    sparsity = model.sparsity
    rate = 1.0 if sparsity.output_selector is None else sparsity.output_keep_rate
    tokens, kept = images * model.image_tokens, images * model.kept_image_tokens
    return Selection(sparsity.sparse_layer, tokens, kept, rate)


def prefill(decoder: DecoderConfig, seen: Selection, text: Tokens, convention: str = "exact") -> float:
    """The decoder's layers on image tokens and `text` others."""
    layer = CONVENTIONS[convention]
    shallow = seen.layers * layer(decoder, seen.tokens + text)
    return shallow + (decoder.num_layers - seen.layers) * layer(decoder, seen.kept + text)


def generation(decoder: DecoderConfig, seen: Selection, text: int, new: int, *, cached: bool) -> float:
    """Prompt and `new` tokens of an answer, exactly: each one by a pass over itself, or over all before it too.

    The prompt's pass gives the first token, the last one is not fed back.
    """
    deep, one = decoder.num_layers - seen.layers, decoder_layer(decoder, 1)

    def layer(tokens: Tokens) -> float:
        return one.weights + tokens * one.mixing if cached else exact(decoder, tokens)

    later = sum(
        seen.layers * layer(seen.tokens + text + fed) + deep * layer(seen.kept + text + seen.output_rate * fed)
        for fed in range(1, new)
    )
    return prefill(decoder, seen, text) + later


def cache_bytes(decoder: DecoderConfig, seen: Selection, text: Tokens, new: Tokens, itemsize: int = 2) -> float:
    """Keys and values of prompt and answer."""
    deep = seen.kept + text + seen.output_rate * new
    tokens = seen.layers * (seen.tokens + text + new) + (decoder.num_layers - seen.layers) * deep
    return 2.0 * itemsize * decoder.num_kv_heads * decoder.head_dim * tokens


def beside_the_decoder(model: ModelConfig, images: int = 1, tokens: int = 0) -> dict[str, Cost]:
    """What no convention above counts: one prompt's tower, projector, predictors and vocabulary head.

    `tokens` are all of the prompt: an instruct predictor judges each of them, whether it is part of the instruction
    or not.
    """
    decoder, sparsity = model.decoder, model.sparsity
    judge = predictor(sparsity.image_predictor, decoder.hidden_size, model.image_tokens)
    reader = predictor(sparsity.text_predictor, decoder.hidden_size, 1)
    return {
        "tower": tower(model.vision, model.layers_used).times(images),
        "projector": projector(model).times(images),
        "image_predictor": judge.times(images) if sparsity.image_selector == "learned" else Cost(),
        **({"instruct_predictor": reader.times(tokens)} if sparsity.instruct_selector == "learned" else {}),
        "vocabulary_head": Cost(2.0 * decoder.hidden_size * decoder.vocab_size),
    }
