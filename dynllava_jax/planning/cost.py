"""What a step that was planned asks for in time, at a model FLOP/s utilisation that is supposed, not measured."""

import math
from typing import Any

from dynllava_jax.planning.machine import Machine


def step_seconds(report: dict[str, Any], mfu: float, machine: Machine) -> float:
    """Of one step. MFU is understood with exact FLOPs."""
    return report["flops_per_step"] / (math.prod(report["mesh"].values()) * machine.chip.flops * mfu)


def epoch(report: dict[str, Any], samples: int, mfu: float, machine: Machine) -> dict[str, Any]:
    """Steps, hours and chip-hours of one pass over the samples.

    `least_hours`, where the program compiled, are those of the roofline: with more, no run reaches that utilisation.
    """
    steps = math.ceil(samples / report["global_batch"])
    hours = steps * step_seconds(report, mfu, machine) / 3600
    devices = math.prod(report["mesh"].values())
    least = {"least_hours": steps * report["roofline"]["seconds"] / 3600} if "roofline" in report else {}
    return {"samples": samples, "mfu": mfu, "steps": steps, "hours": hours, "chip_hours": hours * devices, **least}


def data_rate(report: dict[str, Any], mfu: float, machine: Machine) -> dict[str, float]:
    """Bytes a second that a host has to have ready for its devices, decoded: float32 pixels and ids.

    `at_mfu` is what a run asks for at that utilisation; `at_roofline`, where the program compiled, what none exceeds.
    From disk come the pictures' compressed files; how large those are a plan does not know.
    """
    rates = {"at_mfu": report["host_bytes_per_step"] / step_seconds(report, mfu, machine), "mfu": mfu}
    if "roofline" in report:
        rates["at_roofline"] = report["host_bytes_per_step"] / report["roofline"]["seconds"]
    return rates
