"""Does a run fit on a machine, and what does it cost? Answered by compiling what would run.

Bytes are those of one device unless said otherwise.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dynllava_jax.analysis import aot
from dynllava_jax.analysis.flops import training_flops
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.inference.buckets import Shape
from dynllava_jax.kernels import api
from dynllava_jax.planning.collectives import Traffic, traffic
from dynllava_jax.planning.machine import Machine
from dynllava_jax.planning.programs import DoesNotFitError, Program, answer_programs, on_device, step_program
from dynllava_jax.planning.roofline import Roofline, prefill_flops, roofline, token_flops
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.training.ahead import arguments
from dynllava_jax.training.setup import preset_model
from dynllava_jax.training.step import Trainer

Report = dict[str, Any]


def plan_step(config: TrainConfig, machine: Machine, images: int = 1) -> Report:
    """The report of one optimizer step with the config's mesh and batch.

    Raises:
        InputError: the mesh or the batch does not divide, or the compiler is not installed.
    """
    model, length = preset_model(config), max(config.data.lengths or (config.data.max_length,))
    mesh = make_mesh(config.mesh, aot.topology(machine.topology))
    operations = training_flops(model, config.optimizer, rows=config.global_batch_size, length=length, slots=images)
    report: Report = {
        "program": "step",
        "topology": machine.name,
        "mesh": dict(mesh.shape),
        "global_batch": config.global_batch_size,
        "sequence_length": length,
        "remat": config.remat,
        "attention": _attention(config.attention, mesh),
        "flops_per_step": operations,
    } | _state(config, model, mesh, machine, length, images)
    try:
        program = step_program(model, config, mesh, length, images)
    except DoesNotFitError as error:
        return report | {"fits": False, "problem": str(error)}
    moved = program.read + program.memory.output
    return report | _measured(program, mesh, machine, operations, moved)


def plan_answer(model: ModelConfig, shape: Shape, mesh: str, dtype: str, machine: Machine) -> Iterator[Report]:
    """The reports of prefill and of one decoded token, see `answer_programs`.

    Raises:
        InputError: the mesh does not divide, or the compiler is not installed.
    """
    grid = make_mesh(mesh, aot.topology(machine.topology))
    shared: Report = {
        "topology": machine.name,
        "mesh": dict(grid.shape),
        "shape": dataclasses.asdict(shape),
        "dtype": dtype,
        "attention": _attention(None, grid),
    }
    for name, compile in answer_programs(model, shape, grid, dtype).items():
        prefill = name == "prefill"
        operations = prefill_flops(model, shape) if prefill else token_flops(model, shape)
        report = {"program": name, **shared, "flops": operations}
        try:
            program = compile()
        except DoesNotFitError as error:
            yield report | {"fits": False, "problem": str(error)}
            continue
        held = {"state_per_device": dict(program.held)} if program.held else {}
        yield report | held | _measured(program, grid, machine, operations, program.read)


def cost(report: Report, samples: int, mfu: float, machine: Machine) -> Report:
    """Steps, hours and chip-hours of one epoch at a model FLOP/s utilisation that is supposed, not measured."""
    steps = math.ceil(samples / report["global_batch"])
    devices = math.prod(report["mesh"].values())
    hours = steps * report["flops_per_step"] / (devices * machine.chip.flops * mfu) / 3600
    return {"samples": samples, "mfu": mfu, "steps": steps, "hours": hours, "chip_hours": hours * devices}


def _measured(program: Program, mesh: Mesh, machine: Machine, operations: float, moved: float) -> Report:
    sent = traffic(program.text, mesh.devices.size, machine.per_host)
    bounds = roofline(machine, mesh.devices.size, operations, moved, sent)
    memory = program.memory
    return {
        "fits": memory.total <= machine.limit,
        "bytes_per_device": {
            "arguments": memory.arguments,
            "temporaries": memory.temporaries,
            "output": memory.output,
            "total": memory.total,
            "limit": machine.limit,
        },
        "compile_seconds": round(program.seconds, 1),
        "compile_cpu_seconds": round(program.cpu_seconds, 1),
        "collectives": [_collective(each) for each in sent],
        "roofline": _roofline(bounds),
    }


def _collective(each: Traffic) -> Report:
    return {"kind": each.kind, "count": each.count, "sent": round(each.sent), "across_hosts": round(each.across)}


def _roofline(bounds: Roofline) -> Report:
    return {**dataclasses.asdict(bounds), "seconds": bounds.seconds, "bound": bounds.bound}


def _state(config: TrainConfig, model: ModelConfig, mesh: Mesh, machine: Machine, length: int, images: int) -> Report:
    """What the state takes on a device, on a host while it is saved, and on disk; what a host has to read."""
    trainer = Trainer(model, config, mesh, total=1000)
    (params, adam, _), frozen, batch = arguments(trainer, length, images)
    parts = {"parameters": params, "moments": adam, "frozen": frozen, "batch": batch}
    held = {name: on_device(part) for name, part in parts.items()}
    whole = {name: sum(map(_whole, jax.tree.leaves(part))) for name, part in parts.items()}
    saved = whole["parameters"] + whole["moments"]
    return {
        "state_per_device": held,
        "checkpoint_bytes": saved,
        # Each device's own part is copied to its host; what is replicated is written once, by its first owner.
        "host_bytes_while_saving": (held["parameters"] + held["moments"]) * machine.per_host,
        "host_bytes_per_step": math.ceil(whole["batch"] / machine.hosts),
    }


def _whole(leaf: jax.ShapeDtypeStruct) -> int:
    return math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize


def _attention(wanted: api.Implementation, mesh: Mesh) -> dict[str, str]:
    names = api.chosen(mesh.devices.flat[0].platform)
    return {op: wanted if isinstance(wanted, str) else found[0] for op, found in names.items()}
