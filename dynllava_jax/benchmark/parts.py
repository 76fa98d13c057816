"""The parts of a generation that can be timed by themselves: tower with projector, and the decoder's prefill."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from dynllava_jax.benchmark.roofline import Parts
from dynllava_jax.benchmark.timing import measure
from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.data.batch import Batch, make_batch
from dynllava_jax.inference.buckets import Shape
from dynllava_jax.inference.engine import Engine
from dynllava_jax.inference.prefill import PrefillPlan, prefill, see
from dynllava_jax.inference.run import Prepared
from dynllava_jax.model.dynllava import DynamicLlava, ImageTokens


def time_parts(
    engine: Engine, prepared: Sequence[Prepared], shape: Shape, sparsity: SparsityConfig, *, cached: bool, least: float
) -> Parts:
    """Runs them on the batch, one after the other.

    Args:
        engine: whose weights and dtype are used.
        prepared: the batch.
        shape: that it runs in.
        sparsity: what is dropped.
        cached: the pass fills the cache that decoding begins with, as `Engine.open`.
        least: seconds of a round, see `measure`.
    """
    model = engine.model
    batch = engine.place(
        make_batch(
            [item.sample for item in prepared],
            [item.pixels for item in prepared],
            length=shape.length,
            slots=shape.images,
            rows=shape.rows,
        )
    )
    keys = engine.place(jax.random.split(jax.random.key(0), shape.rows))
    jit = functools.partial(jax.jit, compiler_options=engine.xla_options)
    look = jit(lambda model, batch, keys: see(model, batch, keys, engine.dtype))
    images = look(model, batch, keys)
    tower = None if images is None else measure(look, model, batch, keys, least=least)

    plan = PrefillPlan(sparsity, shape.deep_length, dtype=engine.dtype)
    if cached:
        plan = engine.opening_plan(shape, sparsity)

    def run(model: DynamicLlava, batch: Batch, keys: jax.Array, images: ImageTokens | None) -> Any:
        out = prefill(model, batch, keys, plan, images)
        # The rest would keep alive what the engine's own program drops.
        return out.logits, out.cache

    without_pixels = dataclasses.replace(batch, images=None)
    return Parts(tower, measure(jit(run), model, without_pixels, keys, images, least=least))


def decode_weights(engine: Engine, sparsity: SparsityConfig) -> int:
    """Bytes of the parameters that a step of decoding reads.

    The decoder without the table of embeddings, of which it takes a row for each token, and the predictor that judges
    the token.
    """
    model = engine.model
    decoder = model.decoder
    head = decoder.embedding if decoder.head is None else decoder.head
    read = [decoder.shallow, decoder.deep, decoder.final_norm, head]
    if sparsity.output_selector is not None:
        read.append(model.output_predictor)
    return sum(np.dtype(x.dtype).itemsize * x.size for x in jax.tree.leaves(read))
