"""The least time that a program can take on a machine, and what sets it.

S tokens of a row, S2 of them in the deep stack, M images of a row.
"""

import dataclasses
from collections.abc import Sequence

from dynllava_jax.analysis import flops
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.inference.buckets import Shape, output_rate
from dynllava_jax.planning.collectives import Traffic
from dynllava_jax.planning.machine import Machine


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Lower bounds in seconds, as if each of three things were all there is.

    Attributes:
        compute: the arithmetic, at the peak of the matrix units.
        memory: reading the arguments and writing the results once.
        network: what collectives send, within hosts and across.
    """

    compute: float
    memory: float
    network: float

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, self.network)

    @property
    def bound(self) -> str:
        times = dataclasses.asdict(self)
        return max(times, key=lambda name: times[name])


def roofline(machine: Machine, devices: int, operations: float, moved: float, traffic: Sequence[Traffic]) -> Roofline:
    """Bounds of one run of a program.

    Args:
        machine: where it runs.
        devices: of the mesh.
        operations: FLOPs of all devices together.
        moved: bytes that each device has to read and write at least.
        traffic: of one device.
    """
    inside = sum(each.sent - each.across for each in traffic) / machine.chip.link
    across = sum(each.across for each in traffic) / machine.chip.network
    return Roofline(
        compute=operations / devices / machine.chip.flops,
        memory=moved / machine.chip.bandwidth,
        network=inside + across,
    )


def prefill_flops(model: ModelConfig, shape: Shape) -> float:
    """Forward FLOPs of a prefill: the tower, both stacks with what each sees, the predictor, one row of logits."""
    sparsity, decoder = model.sparsity, model.decoder
    shallow, deep = sparsity.sparse_layer, decoder.num_layers - sparsity.sparse_layer
    images = flops.tower(model.vision, model.layers_used).forward + flops.projector(model).forward
    if sparsity.image_selector == "learned":
        images += flops.predictor(sparsity.image_predictor, decoder.hidden_size, model.image_tokens).forward
    row = (
        shape.images * images
        + shallow * flops.decoder_layer(decoder, shape.length).forward
        + deep * flops.decoder_layer(decoder, shape.deep_length).forward
        + 2.0 * decoder.hidden_size * decoder.vocab_size
    )
    return shape.rows * row


def token_flops(model: ModelConfig, shape: Shape) -> float:
    """Forward FLOPs of the last token of an answer, which attends to most."""
    sparsity, decoder = model.sparsity, model.decoder
    shallow, deep = sparsity.sparse_layer, decoder.num_layers - sparsity.sparse_layer
    weights = flops.decoder_layer(decoder, 1).weights * decoder.num_layers
    width = decoder.num_heads * decoder.head_dim
    seen = shallow * shape.shallow_capacity + deep * (shape.deep_length + output_rate(model) * shape.answer)
    return shape.rows * (weights + 4.0 * width * seen + 2.0 * decoder.hidden_size * decoder.vocab_size)
