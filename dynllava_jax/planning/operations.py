"""FLOPs of what is planned, by two of the conventions that `dynllava flops` knows, under its names.

S tokens of a row, S2 of them in the deep stack, M images of a row, C hidden size.
"""

import dataclasses

from dynllava_jax.analysis import flops
from dynllava_jax.analysis.prompt_flops import beside_the_decoder, exact, paper
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.training import OptimizerConfig
from dynllava_jax.inference.buckets import Shape, output_rate


@dataclasses.dataclass(frozen=True)
class Operations:
    """FLOPs of one run of a program, of all devices together.

    Attributes:
        exact: every matrix product, two operations for a multiply-add; those of tower, projector, predictors and
            vocabulary head are included.
        eq13: the decoder's layers alone by the paper's equation 13, 32 N C² + 4 N² C for N tokens and a layer.
    """

    exact: float
    eq13: float


def step_operations(
    model: ModelConfig, optimizer: OptimizerConfig, *, rows: int, length: int, images: int
) -> Operations:
    """Of an optimizer step; every layer sees all S tokens, since training removes none.

    Equation 13 does not define training: taken is three times the forward pass, as if every product had its two
    gradients. `exact` counts those that are computed, see `analysis.flops`.

    Args:
        model: the model.
        optimizer: says what is trained.
        rows: samples of the global batch.
        length: S.
        images: M.
    """
    counted = flops.training_flops(model, optimizer, rows=rows, length=length, slots=images)
    return Operations(counted, 3 * rows * model.decoder.num_layers * paper(model.decoder, length))


def prefill_operations(model: ModelConfig, shape: Shape) -> Operations:
    """Of a prefill: each stack with what it sees, and one row of logits for each prompt."""
    shallow, deep = _stacks(model)
    beside = sum(cost.forward for cost in beside_the_decoder(model, shape.images, shape.length).values())
    layers = (
        shallow * count(model.decoder, shape.length) + deep * count(model.decoder, shape.deep_length)
        for count in (exact, paper)
    )
    counted, by_paper = layers
    return Operations(shape.rows * (counted + beside), shape.rows * by_paper)


def token_operations(model: ModelConfig, shape: Shape) -> Operations:
    """Of the step that gives an answer's last token, which attends to most: it feeds the last but one.

    Equation 13 is that of a pass over N tokens; one of them, which finds the others in a cache, is 1/N of it.
    """
    sparsity, decoder = model.sparsity, model.decoder
    shallow, deep = _stacks(model)
    fed = max(1, shape.answer - 1)  # the prompt's pass gives the first
    ends = (shallow, shape.length + fed), (deep, shape.deep_length + output_rate(model) * fed)
    one = flops.decoder_layer(decoder, 1)
    counted = sum(layers * (one.weights + seen * one.mixing) for layers, seen in ends)
    counted += 2.0 * decoder.hidden_size * decoder.vocab_size
    if sparsity.output_selector == "learned":
        counted += flops.predictor(sparsity.text_predictor, decoder.hidden_size, 1).forward
    by_paper = sum(layers * paper(decoder, seen) / seen for layers, seen in ends)
    return Operations(shape.rows * counted, shape.rows * by_paper)


def _stacks(model: ModelConfig) -> tuple[int, int]:
    """Layers of the shallow and of the deep stack."""
    return model.sparsity.sparse_layer, model.decoder.num_layers - model.sparsity.sparse_layer
