"""The largest batch that fits, and which mesh and remat policy are best: answered by compiling one after the other."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, get_args

from dynllava_jax.analysis import aot
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.errors import InputError
from dynllava_jax.model.decoder import Remat
from dynllava_jax.planning.machine import Machine
from dynllava_jax.planning.plan import Report, plan_step
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.sharding.specs import batch_parts
from dynllava_jax.training.setup import preset_model

Tell = Callable[[str], None]

_MOST = 1 << 10
"""Samples of a device beyond which nobody asks."""


def largest_batch(config: TrainConfig, machine: Machine, images: int, tell: Tell) -> Report:
    """The report of the largest global batch that fits without accumulation; of a single sample if none does.

    Doubles the samples of a device until a step does not fit, then halves the interval.
    """
    parts = batch_parts(make_mesh(config.mesh, aot.topology(machine.topology)))
    found: dict[int, Report] = {}

    def fits(rows: int) -> bool:
        tell(f"{rows} samples a device")
        sized = dataclasses.replace(config, global_batch_size=rows * parts, device_batch_size=None)
        found[rows] = plan_step(sized, machine, images)
        return found[rows]["fits"]

    low, high = 0, 1
    while high <= _MOST and fits(high):
        low, high = high, 2 * high
    high = min(high, _MOST + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return found[max(low, 1)]


def sweep(config: TrainConfig, machine: Machine, images: int, tell: Tell) -> list[Report]:
    """Every mesh shape with every remat policy: those that fit first, the least time by the roofline before others.

    Rematerialisation is not part of the FLOPs, so that of two policies that are as fast on paper the one that computes
    less twice comes first.

    Raises:
        InputError: the compiler is not installed.
    """
    aot.topology(machine.topology)
    cheap: tuple[Any, ...] = ("none", "dots", "full")
    reports = []
    for mesh in meshes(config, machine):
        for remat in get_args(Remat):
            tell(f"{mesh}, remat {remat}")
            try:
                reports.append(plan_step(dataclasses.replace(config, mesh=mesh, remat=remat), machine, images))
            except InputError as error:  # such as a batch that does not divide over this mesh
                reports.append({"mesh": mesh, "remat": remat, "fits": False, "problem": str(error)})
    return sorted(
        reports,
        key=lambda report: (
            not report["fits"],
            report.get("roofline", {}).get("seconds", 0.0),
            cheap.index(report["remat"]),
        ),
    )


def meshes(config: TrainConfig, machine: Machine) -> Iterator[str]:
    """Ways to spread a run: weights over all devices, over a host with copies across, with and without tensor parts."""
    heads = preset_model(config).decoder.num_heads
    for tensor in (1, 2, 4, 8):
        if machine.devices % tensor or heads % tensor or tensor > machine.per_host:
            continue
        rest = machine.devices // tensor
        yield f"fsdp={rest}" + (f",tensor={tensor}" if tensor > 1 else "")
        inner = machine.per_host // tensor
        if machine.is_gpu and machine.hosts > 1 and inner > 1:
            yield f"data={machine.hosts},fsdp={inner}" + (f",tensor={tensor}" if tensor > 1 else "")
