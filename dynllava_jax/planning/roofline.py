"""The least time that a program can take on a machine, and what sets it."""

import dataclasses
from collections.abc import Sequence

from dynllava_jax.planning.collectives import Traffic
from dynllava_jax.planning.machine import Machine


@dataclasses.dataclass(frozen=True)
class Roofline:
    """Lower bounds in seconds, as if each of three things were all there is.

    Attributes:
        compute: the arithmetic, at the peak of the matrix units.
        memory: reading what is needed of the arguments once, and writing results that take no argument's place.
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
