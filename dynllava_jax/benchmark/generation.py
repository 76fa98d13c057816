"""Generation by the engine that serves users: tower, prefill, each token, memory; dynamic and dense."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from dynllava_jax.benchmark.subjects import random_pixels, random_sample
from dynllava_jax.benchmark.timing import measure, peak_bytes
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.errors import InputError
from dynllava_jax.inference.buckets import Buckets
from dynllava_jax.inference.engine import Engine
from dynllava_jax.inference.run import Prepared, Run
from dynllava_jax.inference.sampling import GREEDY
from dynllava_jax.model.dynllava import DynamicLlava


@dataclasses.dataclass(frozen=True)
class GenerationShape:
    """What is generated.

    Attributes:
        batch: requests together.
        text: tokens of each prompt beside its images'.
        images: pictures of each prompt.
        new: tokens of each answer.
    """

    batch: int
    text: int
    images: int
    new: int

    def __post_init__(self) -> None:
        for name, least in (("batch", 1), ("text", 1), ("images", 0), ("new", 2)):
            if getattr(self, name) < least:
                raise InputError(f"The benchmark's {name} must be {least} or more, not {getattr(self, name)}.")

    def tokens(self, config: ModelConfig) -> int:
        """Of one prompt and its answer."""
        return self.text + self.images * config.image_tokens + self.new


@dataclasses.dataclass(frozen=True)
class PaperShape:
    """A measurement of the paper: the model, what is generated, and whether with a cache."""

    preset: str
    shape: GenerationShape
    cached: bool


PAPER = {
    "table4-1k": PaperShape("dynamic_llava_13b", GenerationShape(8, 50, 1, 1000), False),
    "table4-2k": PaperShape("dynamic_llava_13b", GenerationShape(8, 50, 1, 2000), False),
    "table4-4k": PaperShape("dynamic_llava_13b", GenerationShape(8, 50, 1, 4000), False),
    "table4-1k-cache": PaperShape("dynamic_llava_13b", GenerationShape(8, 50, 1, 1000), True),
    "table4-2k-cache": PaperShape("dynamic_llava_13b", GenerationShape(8, 50, 1, 2000), True),
    "table4-4k-cache": PaperShape("dynamic_llava_13b", GenerationShape(8, 50, 1, 4000), True),
    "table14": PaperShape("dynamic_llava_13b", GenerationShape(1, 50, 1, 1000), True),
}
"""Tables 4 and 14 of the paper, which leave the prompts' length open: 50 tokens, as LVIS-VQA's (table 8)."""


def bench_generation(
    model: DynamicLlava,
    dtype: str,
    shape: GenerationShape,
    *,
    cached: bool = True,
    dense_only: bool = False,
    least: float = 0.2,
) -> Iterator[dict[str, Any]]:
    """One record for the model's own sparsity and one for the dense model, in this order: the peak only grows.

    Every answer takes all its tokens: no token ends it.
    """
    config = model.config
    whole = shape.tokens(config)
    buckets = Buckets(
        rows=(shape.batch,),
        images=tuple(sorted({0, shape.images})),
        length=(whole - shape.new if cached else whole,),
        answer=(shape.new,),
    )
    engine = Engine(model, buckets=buckets, dtype=dtype)
    tower = _tower(model, shape, dtype, least)
    prepared = [
        Prepared(
            random_sample(config, row, text=shape.text, images=shape.images),
            random_pixels(config, row, shape.images),
            shape.new,
            GREEDY,
            row,
        )
        for row in range(shape.batch)
    ]
    modes = {"dynamic": config.sparsity, "dense": config.sparsity.dense()}
    for mode, sparsity in modes.items():
        if mode == "dense" or not (dense_only or sparsity == modes["dense"]):
            run = _generate(engine, prepared, sparsity, cached)
            yield {"mode": mode, "cached": cached, **_record(config, shape, run, tower)}


def _generate(engine: Engine, prepared: list[Prepared], sparsity: SparsityConfig, cached: bool) -> Run:
    """The second run is the one that counts: the first compiles."""
    first = Run.open(engine, prepared, sparsity, use_cache=cached)
    if cached:
        engine.compile(first.shape, sparsity)
    else:
        first.advance(1)
    del first
    run = Run.open(engine, prepared, sparsity, use_cache=cached)
    while not run.finished:
        run.advance()
    return run


def _record(config: ModelConfig, shape: GenerationShape, run: Run, tower: float | None) -> dict[str, Any]:
    decode = run.seconds["decode"]
    judged = [keep for row in run.fed for keep in row]
    return {
        **dataclasses.asdict(shape),
        "image_tokens": shape.images * config.image_tokens,
        "kept_image_tokens": sum(len(kept) for kept in run.kept[0]),
        "kept_output_share": sum(judged) / len(judged),
        "tower_seconds": tower,
        "prefill_seconds": run.seconds["prefill"],
        "decode_seconds": decode,
        "ms_per_token": 1e3 * decode / (shape.new - 1),
        "tokens_per_second": shape.batch * (shape.new - 1) / decode,
        "peak_bytes": peak_bytes(),
    }


def _tower(model: DynamicLlava, shape: GenerationShape, dtype: str, least: float) -> float | None:
    """Tower and projector by themselves; they are part of the prefill too."""
    if not shape.images:
        return None
    side = model.config.vision.image_size
    images = jnp.zeros((shape.batch, shape.images, side, side, 3))
    present = jnp.ones((shape.batch, shape.images), bool)
    keys = jax.random.split(jax.random.key(0), shape.batch)
    run = jax.jit(lambda model, *args: model.image_tokens(*args, jnp.dtype(dtype)).features)
    return measure(run, model, images, present, keys, least=least)
