"""What a training run holds, saves and reads beside its program."""

import dataclasses
import math
from collections.abc import Mapping

import jax

from dynllava_jax.planning.activations import kept_activations
from dynllava_jax.planning.machine import Machine
from dynllava_jax.planning.programs import on_device
from dynllava_jax.training.ahead import arguments
from dynllava_jax.training.step import Trainer


@dataclasses.dataclass(frozen=True)
class State:
    """Bytes.

    Attributes:
        held: of a device, by what they are: parameters, moments, frozen, batch.
        activations: of a device, at most, see `activations.kept_activations`.
        checkpoint: on disk, of a run that has its frozen parameters from `init.checkpoint`; what it lacks of them, a
            run saves too.
        host_saving: of a host, beside the run, while a checkpoint is written.
        host_batch: of a host's share of a batch, as it goes to the devices: float32 pixels, ids.
    """

    held: Mapping[str, int]
    activations: int
    checkpoint: int
    host_saving: int
    host_batch: int


def training_state(trainer: Trainer, machine: Machine, length: int, images: int) -> State:
    """That of a run.

    Args:
        trainer: of the run, on a mesh of the machine.
        machine: where it runs.
        length: tokens of a sample.
        images: of a sample.
    """
    (params, adam, _), frozen, batch = arguments(trainer, length, images)
    parts = {"parameters": params, "moments": adam, "frozen": frozen, "batch": batch}
    held = {name: on_device(part) for name, part in parts.items()}
    return State(
        held=held,
        activations=kept_activations(trainer, batch),
        checkpoint=_whole(params) + _whole(adam),
        # Each device's own part is copied to its host; what is replicated is written once, by its first owner.
        host_saving=(held["parameters"] + held["moments"]) * machine.per_host,
        host_batch=math.ceil(_whole(batch) / machine.hosts),
    )


def _whole(tree: object) -> int:
    """Bytes of all devices together, what is replicated once."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
