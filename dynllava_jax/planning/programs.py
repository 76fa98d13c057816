"""The programs of a run, compiled for a machine that is not there: an optimizer step, a prefill, a decode segment."""

import dataclasses
import functools
import math
import os
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dynllava_jax.analysis import aot
from dynllava_jax.analysis.decode_program import compile_prefill, compile_segment, segment_arguments
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.errors import InputError
from dynllava_jax.inference.buckets import Shape, output_rate
from dynllava_jax.training.ahead import compile_step


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program.

    Attributes:
        name: step, prefill, decode or decode_all_kept.
        memory: of one device, weights that lie there without being read included.
        read: bytes of a device that it has to read: of a segment, for its last token.
        seconds: that compiling took.
        cpu_seconds: of all threads and of assemblers that were called; on a busy machine the better measure.
        text: its HLO.
        held: bytes of a device by what they are, where arguments and output are told apart.
    """

    name: str
    memory: aot.Memory
    read: int
    seconds: float
    cpu_seconds: float
    text: str
    held: Mapping[str, int]


Compile = Callable[[], Program]


class DoesNotFitError(Exception):
    """The compiler itself found that a program needs more memory than a device has; its words."""


def step_program(model: ModelConfig, config: TrainConfig, mesh: Mesh, length: int, images: int) -> Program:
    """One optimizer step.

    Raises:
        InputError: what `Trainer` refuses.
        DoesNotFitError: it exceeds the device's memory.
    """
    return _timed("step", lambda: compile_step(model, config, mesh, length=length, images=images))


def answer_programs(model: ModelConfig, shape: Shape, mesh: Mesh, dtype: str) -> dict[str, Compile]:
    """What a batch of requests runs, by name; each raises `DoesNotFitError` where it exceeds the device's memory.

    `prefill`; `decode`, a segment with the deep cache as large as it gets when as much of the answer is kept as is
    expected; and `decode_all_kept`, the same when nothing of it is dropped, unless that is the same program.
    """
    rate = output_rate(model)
    sizes = shape.deep_capacities(rate)
    expected = expected_growth(shape, rate)

    def prefill() -> Program:
        params, state = segment_arguments(model, shape, mesh, dtype=dtype)
        held, made = {"weights": on_device(params)}, {"cache": on_device(state.cache)}
        unread = _embeddings(model, params)
        return _timed("prefill", lambda: compile_prefill(model, shape, mesh, dtype=dtype), held, made, unread=unread)

    def segment(name: str, grown: int, rate: float) -> Program:
        params, state = segment_arguments(model, shape, mesh, dtype=dtype, grown=grown)
        held = {"weights": on_device(params), "cache": on_device(state.cache)}
        empty = 1 - _deep_tokens(shape, rate) / state.cache.deep.capacity
        unread = _embeddings(model, params) + int(empty * on_device(state.cache.deep.blocks))
        compile = functools.partial(compile_segment, model, shape, mesh, dtype=dtype, grown=grown)
        return _timed(name, compile, held, unread=unread)

    programs: dict[str, Compile] = {
        "prefill": prefill,
        "decode": lambda: segment("decode", expected, rate),
    }
    if expected < len(sizes) - 1:
        programs["decode_all_kept"] = lambda: segment("decode_all_kept", len(sizes) - 1, 1.0)
    return programs


def expected_growth(shape: Shape, rate: float) -> int:
    """How often the deep cache has grown at the end of an answer of which `rate` is kept."""
    needed = _deep_tokens(shape, rate)
    return next(number for number, size in enumerate(shape.deep_capacities(rate)) if size >= needed)


def _deep_tokens(shape: Shape, rate: float) -> int:
    """What the deep cache holds of a sample at the end of an answer of which `rate` is kept."""
    return shape.deep_length + math.ceil(rate * shape.answer)


def _embeddings(model: ModelConfig, params: Any) -> int:
    """Bytes of a device's part of the table of which a program takes rows, unless it is the vocabulary head too."""
    return 0 if model.decoder.tie_embeddings else on_device(params["decoder"]["embedding"])


def on_device(tree: Any) -> int:
    """Bytes of placed shapes on one device."""
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize
        for leaf in jax.tree.leaves(tree)
    )


def _timed(
    name: str,
    compile: Callable[[], jax.stages.Compiled],
    held: Mapping[str, int] = MappingProxyType({}),
    made: Mapping[str, int] = MappingProxyType({}),
    *,
    unread: int = 0,
) -> Program:
    """`held` are bytes of arguments, `made` of output, `unread` those of arguments that need not be read."""
    start, cpu = time.monotonic(), _cpu_seconds()
    try:
        compiled = compile()
    except InputError:
        raise
    except Exception as error:
        if "RESOURCE_EXHAUSTED" in str(error) or "memory" in str(error).lower():
            raise DoesNotFitError(str(error).splitlines()[0][:300]) from None
        raise
    seconds, cpu_seconds = time.monotonic() - start, _cpu_seconds() - cpu
    memory = aot.memory(compiled)
    there = dataclasses.replace(memory, arguments=max(memory.arguments, sum(held.values())))
    text, read = compiled.as_text() or "", memory.arguments - unread
    return Program(name, there, read, seconds, cpu_seconds, text, {**held, **made})


def _cpu_seconds() -> float:
    """Of this process and of those that it called and waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system
