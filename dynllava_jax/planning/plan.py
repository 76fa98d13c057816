"""Does a run fit on a machine, and what does it cost? Answered by compiling what would run.

Bytes are those of one device unless said otherwise, FLOPs those of all devices together.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from jax.sharding import Mesh

from dynllava_jax.analysis import aot
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.inference.buckets import Shape
from dynllava_jax.kernels import api
from dynllava_jax.planning.collectives import Traffic, traffic
from dynllava_jax.planning.machine import Machine
from dynllava_jax.planning.operations import Operations, prefill_operations, step_operations, token_operations
from dynllava_jax.planning.programs import DoesNotFitError, Program, answer_programs, step_program
from dynllava_jax.planning.roofline import Roofline, roofline
from dynllava_jax.planning.state import State, training_state
from dynllava_jax.sharding.mesh import make_mesh
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
    rows = config.global_batch_size
    operations = step_operations(model, config.optimizer, rows=rows, length=length, images=images)
    report: Report = {
        "program": "step",
        "topology": machine.name,
        "mesh": dict(mesh.shape),
        "global_batch": rows,
        "sequence_length": length,
        "remat": config.remat,
        "attention": _attention(config.attention, mesh),
        "flops_per_step": operations.exact,
        **_operations(operations),
        **_state(training_state(Trainer(model, config, mesh, total=1000), machine, length, images)),
    }
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
        operations = (prefill_operations if name == "prefill" else token_operations)(model, shape)
        report = {"program": name, **shared, "flops": operations.exact, **_operations(operations)}
        try:
            program = compile()
        except DoesNotFitError as error:
            yield report | {"fits": False, "problem": str(error)}
            continue
        held = {"state_per_device": dict(program.held)}
        yield report | held | _measured(program, grid, machine, operations, program.read)


def _measured(program: Program, mesh: Mesh, machine: Machine, operations: Operations, moved: float) -> Report:
    sent = traffic(program.text, mesh.devices.size, machine.per_host)
    bounds = roofline(machine, mesh.devices.size, operations.exact, moved, sent)
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


def _operations(operations: Operations) -> Report:
    return {"flops_by_convention": dataclasses.asdict(operations)}


def _collective(each: Traffic) -> Report:
    return {"kind": each.kind, "count": each.count, "sent": round(each.sent), "across_hosts": round(each.across)}


def _roofline(bounds: Roofline) -> Report:
    return {**dataclasses.asdict(bounds), "seconds": bounds.seconds, "bound": bounds.bound}


def _state(state: State) -> Report:
    return {
        "state_per_device": dict(state.held),
        "activations_per_device": state.activations,
        "checkpoint_bytes": state.checkpoint,
        "host_bytes_while_saving": state.host_saving,
        "host_bytes_per_step": state.host_batch,
    }


def _attention(wanted: api.Implementation, mesh: Mesh) -> dict[str, str]:
    names = api.chosen(mesh.devices.flat[0].platform)
    return {op: wanted if isinstance(wanted, str) else found[0] for op, found in names.items()}
