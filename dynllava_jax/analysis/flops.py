"""FLOPs of one training step, and what a device could do: the two sides of MFU.

Counted are matrix products, two operations for each multiply-add: those with parameters and those of attention,
padding included, the triangle that the causal mask hides too (the convention of PaLM, arXiv 2204.02311, appendix B;
in training nothing is compacted, so the deep stack sees every token). What rematerialisation computes twice is
counted once. Norms, softmax and activations are left out.

A gradient costs one product for the parameters, where they are trained, and one for the input, where something
trained lies before it. Parts are not taken apart: the first trained one (tower, projector, a stack with its adapters)
is counted with the gradients of its own first inputs, which nothing asks for. FastV's look at one row of attention is
left out.
"""

import dataclasses

from dynllava_jax.config.decoder import DecoderConfig
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.sparsity import MlpPredictor, Predictor, TransformerPredictor
from dynllava_jax.config.training import LoraConfig, OptimizerConfig
from dynllava_jax.config.vision import MlpProjector, TokenPackerProjector, VisionConfig

PEAKS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 NVL": 835e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200 NVL": 835e12,
    "NVIDIA H200": 989e12,
}
"""Dense bfloat16 FLOP/s of one device, by the beginning of its `device_kind`, the first that fits.

TPUs: cloud.google.com/tpu/docs/v4, …/v5e, …/v5p, …/v6e. GPUs: NVIDIA's data sheets of A100, H100 and H200 (SXM
unless the name says otherwise); their larger figures are those for sparse matrices.
"""


Tokens = int | float
"""A count; a share of an answer need not be whole."""


def peak_flops(device_kind: str) -> float | None:
    """bfloat16 FLOP/s of a device that calls itself so; None when it is not known."""
    return next((peak for name, peak in PEAKS.items() if device_kind.startswith(name)), None)


@dataclasses.dataclass(frozen=True)
class Cost:
    """The forward FLOPs of one part of the model: products with parameters, and of activations with each other."""

    weights: float = 0.0
    mixing: float = 0.0

    def times(self, count: int) -> "Cost":
        return Cost(self.weights * count, self.mixing * count)

    @property
    def forward(self) -> float:
        return self.weights + self.mixing

    def backward(self, trained: bool, before: bool) -> float:
        """`before`: something that is trained needs the gradient of this part's input."""
        passed = trained or before
        return self.weights * (trained + passed) + 2 * self.mixing * passed


def training_flops(model: ModelConfig, optimizer: OptimizerConfig, *, rows: int, length: int, slots: int) -> float:
    """Forward and backward of one optimizer step.

    Args:
        model: the model.
        optimizer: says what is trained.
        rows: samples of the global batch.
        length: S, tokens of each row.
        slots: M, images of each row.
    """
    sparsity, train_decoder = model.sparsity, not optimizer.freeze_decoder and optimizer.lora is None
    train_predictors = not optimizer.freeze_predictors
    layer = decoder_layer(model.decoder, length)
    adapter = lora_layer(model.decoder, optimizer.lora, length)
    shallow, deep = sparsity.sparse_layer, model.decoder.num_layers - sparsity.sparse_layer
    image = predictor(sparsity.image_predictor, model.decoder.hidden_size, model.image_tokens).times(slots)
    text = predictor(sparsity.text_predictor, model.decoder.hidden_size, 1).times(length)
    # In the order of the forward pass, each with whether it is trained. A stack's adapters come before its layers:
    # those in its first one need the gradient that passes through all others.
    parts = [
        (tower(model.vision, model.layers_used).times(slots), not optimizer.freeze_vision),
        (projector(model).times(slots), not optimizer.freeze_projector),
        (adapter.times(shallow), True),
        (layer.times(shallow), train_decoder),
        (image if sparsity.image_selector == "learned" else Cost(), train_predictors),
        *(
            (text, train_predictors)
            for name in (sparsity.output_selector, sparsity.instruct_selector)
            if name == "learned"
        ),
        (adapter.times(deep), True),
        (layer.times(deep), train_decoder),
        (Cost(2.0 * length * model.decoder.hidden_size * model.decoder.vocab_size), train_decoder),
    ]
    total, before = 0.0, False
    for cost, trained in parts:
        if cost.forward:
            total += cost.forward + cost.backward(trained, before)
            before = before or trained
    return rows * total


def tower(vision: VisionConfig, layers: int) -> Cost:
    """One image through the layers of the tower that are used."""
    width, tokens = vision.hidden_size, 1 + vision.num_patches
    patches = 2.0 * vision.num_patches * 3 * vision.patch_size**2 * width
    linear = 2.0 * tokens * (4 * width**2 + 2 * width * vision.intermediate_size)
    return Cost(patches + layers * linear, layers * 4.0 * tokens**2 * width)


def projector(model: ModelConfig) -> Cost:
    """One image through the projector."""
    inputs, outputs = model.vision.hidden_size, model.decoder.hidden_size
    match model.projector:
        case MlpProjector(depth):
            tokens = model.sparsity.kept("tower", model.vision.num_features)
            return Cost(2.0 * tokens * (inputs * outputs + (depth - 1) * outputs**2))
        case TokenPackerProjector(width=width, levels=levels):
            patches, cells = model.vision.num_patches, model.projected_tokens
            keys = 2 * patches * (len(levels) * inputs * width + 2 * width**2)
            queries = cells * (inputs * width + 2 * width**2)
            out = cells * (width * outputs + outputs**2)
            return Cost(2.0 * (keys + queries + out), 4.0 * patches * width)
        case _:
            return Cost()


def decoder_layer(decoder: DecoderConfig, length: Tokens) -> Cost:
    """One row through one layer."""
    width, heads = decoder.hidden_size, decoder.num_heads * decoder.head_dim
    shared = decoder.num_kv_heads * decoder.head_dim
    linear = 2 * width * heads + 2 * width * shared + 3 * width * decoder.intermediate_size
    return Cost(2.0 * length * linear, 4.0 * length**2 * heads)


def lora_layer(decoder: DecoderConfig, lora: LoraConfig | None, length: int) -> Cost:
    """One row through the adapters of one layer."""
    if lora is None:
        return Cost()
    width, heads = decoder.hidden_size, decoder.num_heads * decoder.head_dim
    shared, inner = decoder.num_kv_heads * decoder.head_dim, decoder.intermediate_size
    ends = {
        **dict.fromkeys(("query", "out"), width + heads),
        **dict.fromkeys(("key", "value"), width + shared),
        **dict.fromkeys(("gate", "up", "down"), width + inner),
    }
    return Cost(2.0 * length * lora.rank * sum(ends[name] for name in lora.targets))


def predictor(config: Predictor, inputs: int, tokens: int) -> Cost:
    """`tokens` tokens that are judged together."""
    match config:
        case TransformerPredictor(width=width, mlp_width=mlp, depth=depth):
            linear = inputs * width + depth * (4 * width**2 + 2 * width * mlp) + _chain(width, width)
            return Cost(2.0 * tokens * linear, depth * 4.0 * tokens**2 * width)
        case MlpPredictor(width):
            return Cost(2.0 * tokens * (inputs * width + _chain(width, width)))
        case _:
            return Cost(2.0 * tokens * inputs * 2)


def _chain(inputs: int, width: int) -> int:
    """Weights of the layers inputs -> width/2 -> width/4 -> 2 that end a predictor."""
    return inputs * (width // 2) + (width // 2) * (width // 4) + (width // 4) * 2
