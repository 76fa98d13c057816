"""The programs of a run, compiled for a machine that is not there: an optimizer step, a prefill, a decode segment."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dynllava_jax.analysis import aot
from dynllava_jax.analysis.decode_program import compile_segment
from dynllava_jax.checkpoint.leaves import abstract_model
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.errors import InputError
from dynllava_jax.inference.buckets import Buckets, Shape, output_rate
from dynllava_jax.inference.engine import Engine
from dynllava_jax.inference.layouts import placement
from dynllava_jax.nn.constrain import constraints
from dynllava_jax.sharding.specs import activation_constraint, activation_sharding
from dynllava_jax.training.ahead import compile_step


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
        name: step, prefill or decode.
        memory: of one device.
        seconds: that compiling took.
        text: its HLO.
    """

    name: str
    memory: aot.Memory
    seconds: float
    text: str


class DoesNotFitError(Exception):
    """The compiler itself found that a program needs more memory than a device has; its words."""


def step_program(model: ModelConfig, config: TrainConfig, mesh: Mesh, length: int, images: int) -> Program:
    """One optimizer step.

    Raises:
        InputError: what `Trainer` refuses.
        DoesNotFitError: it exceeds the device's memory.
    """
    return _timed("step", lambda: compile_step(model, config, mesh, length=length, images=images))


def answer_programs(model: ModelConfig, shape: Shape, mesh: Mesh, dtype: str) -> Iterator[Program]:
    """Prefill and decode segment of a batch of requests, the segment with the deep cache at its largest.

    Raises:
        DoesNotFitError: one exceeds the device's memory.
    """
    grown = len(shape.deep_capacities(output_rate(model))) - 1
    yield _timed("prefill", lambda: _prefill(model, shape, mesh, dtype))
    yield _timed("decode", lambda: compile_segment(model, shape, mesh, dtype=dtype, grown=grown))


def _prefill(model: ModelConfig, shape: Shape, mesh: Mesh, dtype: str) -> jax.stages.Compiled:
    weights = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.dtype(dtype)), abstract_model(model))
    weights = aot.place(weights, placement(weights, mesh, model))
    engine = Engine(weights, buckets=Buckets(), mesh=mesh, dtype=dtype, stop_ids=(model.text_prep.eos_id,))
    body, params, arguments = engine.prefill_program(shape, model.sparsity)
    with constraints(activation_constraint(mesh)):
        options = aot.TOWER_OPTIONS.get(mesh.devices.flat[0].platform)
        return aot.compile_ahead(body, params, *_split(arguments, mesh), compiler_options=options)


def _split(tree: Any, mesh: Mesh) -> Any:
    """Rows over the axes of the batch."""

    def sharding(x: Any) -> jax.sharding.NamedSharding:
        return activation_sharding(x.shape, ("batch", *(None,) * (len(x.shape) - 1)), mesh)

    return aot.place(tree, jax.tree.map(sharding, tree))


def _timed(name: str, compile: Callable[[], jax.stages.Compiled]) -> Program:
    start = time.monotonic()
    try:
        compiled = compile()
    except InputError:
        raise
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error) or "memory" in str(error).lower():
            raise DoesNotFitError(str(error).splitlines()[0][:300]) from None
        raise
    return Program(name, aot.memory(compiled), time.monotonic() - start, compiled.as_text() or "")
