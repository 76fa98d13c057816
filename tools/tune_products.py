"""Finds how the fused products of `kernels/products_triton.py` are fastest on this GPU, for `kernels/tuning.py`.

    python tools/tune_products.py FILE               # climbs from the walks of the table to faster ones
    python tools/tune_products.py FILE --rehearse    # the same with a tiny model, interpreted, on any machine

FILE holds one JSON record a line, each as soon as it was there: every walk that was tried, alone over some layers'
weights, and last whole tokens at batch 1, by XLA's products, by the table's walks and by the fastest ones. A walk is
judged by its time alone: whether one spills registers is for `tests/kernels/test_products.py` to say.
"""

import argparse
import contextlib
import dataclasses
import functools
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from dynllava_jax.benchmark.generation import bench_generation
from dynllava_jax.benchmark.shapes import GenerationShape
from dynllava_jax.benchmark.subjects import random_model
from dynllava_jax.benchmark.timing import Machine, machine, measure
from dynllava_jax.config.decoder import DecoderConfig
from dynllava_jax.config.presets import get_preset
from dynllava_jax.kernels import tuning
from dynllava_jax.kernels.products import Kept, Products, Stream, fused_products
from dynllava_jax.kernels.tuning import GpuProducts, ProductWalk
from dynllava_jax.sharding.xla_options import xla_options

LAYERS = 8
"""Of one stack: their weights are many times what a GPU's cache holds."""
_LEAST = {"columns": 16, "step": 16, "warps": 1, "stages": 1}

Program = Callable[..., Any]
"""Runs one kernel once for each layer of a stack."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One of a layer's products.

    Attributes:
        field: of `GpuProducts`, where its walk stands.
        program: is timed.
        arguments: of it.
        weights: bytes of them that it reads.
    """

    field: str
    program: Program
    arguments: tuple[Any, ...]
    weights: int


def kernels(products: Products, config: DecoderConfig, rows: int, dtype: str) -> dict[str, Kernel]:
    """The four products of a layer, of random weights."""
    width, hidden, head_dim = config.hidden_size, config.intermediate_size, config.head_dim
    heads, groups = config.num_heads * head_dim, config.num_kv_heads * head_dim
    eps, scale, keys = config.norm_eps, jnp.ones((LAYERS, width), dtype), iter(jax.random.split(jax.random.key(0), 16))

    def drawn(*shape: int) -> jax.Array:
        return jax.jit(lambda key: jax.random.normal(key, shape, dtype))(next(keys))

    def repeated(one: Callable[..., Any]) -> Program:
        def program(x: Any, carry: Any, *rest: Any) -> Any:
            stream = products.begin(x, scale[0])
            return jax.lax.fori_loop(0, LAYERS, lambda at, carry: one(at, carry, stream, *rest), carry)

        return program

    def rotated(at: Any, kept: Kept, stream: Stream, weights: Any, angle: Any) -> Kept:
        return products.rotated(stream, eps, weights, angle, angle, at, kept)[3]

    def gated(at: Any, _: Any, stream: Stream, weights: Any) -> Any:
        gate, up = weights
        return products.gated(stream, eps, gate, up, at)

    def added(at: Any, _: Any, stream: Stream, weights: Any, given: Any) -> Any:
        return products.added(stream, given, *weights, layer=at, scale=scale).x

    x, stack = drawn(rows, width), functools.partial(drawn, LAYERS)
    turned = [stack(width, heads), stack(width, groups), stack(width, groups)]
    gates, out, down = [stack(width, hidden), stack(width, hidden)], [stack(heads, width)], [stack(hidden, width)]
    kept = Kept(*(jnp.zeros((LAYERS, rows, groups), dtype) for _ in Kept._fields))
    of = {
        "rotated": ("rotated", rotated, turned, kept, drawn(rows, head_dim)),
        "gated": ("gated", gated, gates, drawn(rows, hidden)),
        "out": ("added", added, out, x, drawn(rows, heads)),
        "down": ("added", added, down, x, drawn(rows, hidden)),
    }
    return {
        name: Kernel(field, repeated(one), (x, carry, weights, *rest), sum(weight.nbytes for weight in weights))
        for name, (field, one, weights, carry, *rest) in of.items()
    }


@contextlib.contextmanager
def using(walks: GpuProducts) -> Iterator[None]:
    """The kernels that are traced meanwhile walk so."""
    before, tuning.GPU_PRODUCTS = tuning.GPU_PRODUCTS, walks
    try:
        yield
    finally:
        tuning.GPU_PRODUCTS = before


def neighbours(walk: ProductWalk) -> list[ProductWalk]:
    """Those that differ in one field by one step: twice and half, or one stage."""
    found = []
    for field, least in _LEAST.items():
        value = getattr(walk, field)
        near = (value + 1, value - 1) if field == "stages" else (2 * value, value // 2)
        found += [dataclasses.replace(walk, **{field: size}) for size in near if size >= least]
    return found


def climb(start: ProductWalk, cost: Callable[[ProductWalk], float], until: float) -> ProductWalk:
    """The first walk, from `start` on to the fastest neighbour each time, whose neighbours are all slower.

    Args:
        start: is tried first.
        cost: of a walk, asked once of each; infinite for one that does not work.
        until: `time.monotonic()` after which no more are tried.
    """
    costs, best = {start: cost(start)}, start
    while True:
        here = best
        for walk in neighbours(here):
            if walk not in costs and time.monotonic() < until:
                costs[walk] = cost(walk)
        best = min(costs, key=lambda walk: costs[walk])
        if best == here:
            return best


class Trial:
    """Times walks, and writes down each."""

    def __init__(self, of: dict[str, Kernel], device: Machine, record: Callable[[dict[str, Any]], None], least: float):
        self._of, self._device, self._record, self._least = of, device, record, least

    def cost(self, field: str, walk: ProductWalk) -> float:
        """Seconds of a layer's kernels with this walk, together; infinite where one does not compile."""
        return sum(self._seconds(name, kernel, walk) for name, kernel in self._of.items() if kernel.field == field)

    def _seconds(self, name: str, kernel: Kernel, walk: ProductWalk) -> float:
        options = xla_options(jax.devices()[0], "bfloat16")
        with using(dataclasses.replace(tuning.GPU_PRODUCTS, **{kernel.field: walk})):
            try:
                program = jax.jit(kernel.program, compiler_options=options)
                seconds = measure(program, *kernel.arguments, least=self._least) / LAYERS
            except jax.errors.JaxRuntimeError as error:  # too much shared memory, for one
                self._record({"kernel": name, **dataclasses.asdict(walk), "error": str(error).splitlines()[0]})
                return float("inf")
        speed = kernel.weights / LAYERS / seconds
        numbers = {"us": 1e6 * seconds, "gb_per_second": speed / 1e9, "of_copy": speed / self._device.bandwidth}
        self._record({"kernel": name, **dataclasses.asdict(walk), **numbers})
        return seconds


def tokens(preset: str, dtype: str, device: Machine, walks: GpuProducts, name: str | None, new: int) -> Iterator[Any]:
    """Records of `dynllava bench generate` at batch 1, by products of this name."""
    with using(walks):
        model = random_model(get_preset(preset), dtype)
        yield from bench_generation(model, dtype, GenerationShape(1, 64, 1, new), device, products=name, least=0.05)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--preset", default="dynamic_llava_7b", help="whose shapes (dynamic_llava_7b)")
    parser.add_argument("--rows", type=int, default=1, help="tokens at a time (1)")
    parser.add_argument("--seconds", type=float, default=240, help="for trying walks (240)")
    parser.add_argument("--rehearse", action="store_true", help="with a tiny model, interpreted")
    args = parser.parse_args()
    preset, name, dtype, new, least = args.preset, "triton", "bfloat16", 64, 0.02
    if args.rehearse:
        preset, name, dtype, new, least = "tiny", "triton-interpret", "float32", 4, 0.001
    products = fused_products(name)
    assert products is not None
    device, began = machine(dtype, least=least), time.monotonic()
    with args.file.open("w", encoding="utf-8") as file:

        def record(numbers: dict[str, Any]) -> None:
            print(json.dumps(numbers), file=file, flush=True)
            print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in numbers.items()))

        record({**device.record(), "jax": jax.__version__, "preset": preset, "rows": args.rows})
        trial = Trial(kernels(products, get_preset(preset).decoder, args.rows, dtype), device, record, least)
        best, fields = tuning.GPU_PRODUCTS, [field.name for field in dataclasses.fields(GpuProducts)]
        for at, field in enumerate(fields, start=1):
            until = began + args.seconds * at / len(fields)
            found = climb(getattr(best, field), functools.partial(trial.cost, field), until)
            best = dataclasses.replace(best, **{field: found})
        del trial  # and its weights, before a whole model's
        table = tuning.GPU_PRODUCTS
        for what, walks, asked in (("xla", table, None), ("table", table, name), ("fastest", best, name)):
            for numbers in tokens(preset, dtype, device, walks, asked, new):
                if numbers["mode"] != "dynamic_to_dense":
                    shown = {key: numbers[key] for key in ("mode", "ms_per_token", "share_of_roofline")}
                    record({"products": what, **shown})
        record({"fastest": dataclasses.asdict(best)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
