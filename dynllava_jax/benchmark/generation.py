"""Generation by the engine that serves users: tower, prefill, each token, memory; dynamic and dense."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from dynllava_jax.benchmark.parts import decode_weights, time_parts
from dynllava_jax.benchmark.roofline import Answers, dynamic_to_dense, generation_numbers
from dynllava_jax.benchmark.shapes import GenerationShape
from dynllava_jax.benchmark.subjects import random_pixels, random_sample
from dynllava_jax.benchmark.timing import Machine, peak_bytes
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.inference.buckets import Buckets
from dynllava_jax.inference.engine import Engine
from dynllava_jax.inference.run import Prepared, Run
from dynllava_jax.inference.sampling import GREEDY
from dynllava_jax.model.dynllava import DynamicLlava


def bench_generation(
    model: DynamicLlava,
    dtype: str,
    shape: GenerationShape,
    machine: Machine,
    *,
    cached: bool = True,
    dense_only: bool = False,
    products: str | None = None,
    least: float = 0.2,
) -> Iterator[dict[str, Any]]:
    """One record for the model's own sparsity and one for the dense model, in this order: the peak only grows.

    A third one, `dynamic_to_dense`, compares them. Every answer takes all its tokens: no token ends it. `products` as
    for `Engine`.
    """
    config = model.config
    engine = Engine(model, buckets=exact_buckets(config, shape, cached), dtype=dtype, products=products)
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
    records: dict[str, dict[str, Any]] = {}
    for mode, sparsity in modes.items():
        if mode == "dense" or not (dense_only or sparsity == modes["dense"]):
            before = peak_bytes()
            run = _generate(engine, prepared, sparsity, cached)
            peak, answers, padded = peak_bytes(), _answers(run), run.shape
            del run  # and its cache with it
            numbers = generation_numbers(
                dataclasses.replace(config, sparsity=sparsity),
                shape,
                answers,
                time_parts(engine, prepared, padded, sparsity, cached=cached, least=least),
                machine,
                weights=decode_weights(engine, sparsity),
                itemsize=np.dtype(dtype).itemsize,
            )
            records[mode] = {"mode": mode, **numbers, "peak_bytes": peak, "peak_bytes_before": before}
            yield records[mode]
    if len(records) > 1:
        yield dynamic_to_dense(records["dynamic"], records["dense"])


def exact_buckets(config: ModelConfig, shape: GenerationShape, cached: bool) -> Buckets:
    """Nothing is padded, in the deep stack neither: what is timed is what was asked for."""
    whole = shape.prompt(config) if cached else shape.tokens(config)
    deep = whole - shape.images * (config.image_tokens - config.kept_image_tokens)
    return Buckets(
        rows=(shape.batch,),
        images=tuple(sorted({0, shape.images})),
        length=tuple(sorted({deep, whole})),
        answer=(shape.new,),
    )


def _generate(engine: Engine, prepared: list[Prepared], sparsity: SparsityConfig, cached: bool) -> Run:
    """The second run is the one that counts: in the first, programs are compiled and meet the device.

    A GPU loads kernels and records graphs only when a program takes a step, so the first run takes all of them; but
    without a cache, where a step is as long as a prefill, a single one.
    """
    first = Run.open(engine, prepared, sparsity, use_cache=cached)
    if cached:
        _finish(first)
    else:
        first.advance(1)
    del first
    return _finish(Run.open(engine, prepared, sparsity, use_cache=cached))


def _finish(run: Run) -> Run:
    while not run.finished:
        run.advance()
    return run


def _answers(run: Run) -> Answers:
    assert run.opened is not None  # it was not resumed
    lengths = jax.device_get(run.opened.deep_length)
    return Answers(
        cached=run.cache is not None,
        first_token=run.seconds["prefill"],
        decode=run.seconds["decode"],
        kept_image_tokens=sum(len(kept) for kept in run.kept[0]),
        deep=tuple(int(lengths[row]) for row in range(len(run.tokens))),
        fed=tuple(tuple(row) for row in run.fed),
    )
