"""The programs of a run, compiled for a machine that is not there: an optimizer step, a prefill, a decode segment."""

import dataclasses
import time
from collections.abc import Callable, Iterator

import jax
from jax.sharding import Mesh

from dynllava_jax.analysis import aot
from dynllava_jax.analysis.decode_program import compile_prefill, compile_segment
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.errors import InputError
from dynllava_jax.inference.buckets import Shape, output_rate
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
    yield _timed("prefill", lambda: compile_prefill(model, shape, mesh, dtype=dtype))
    yield _timed("decode", lambda: compile_segment(model, shape, mesh, dtype=dtype, grown=grown))


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
