"""One training step by the trainer that users run: seconds, tokens, and the share of what the devices could do."""

import statistics
import time
from typing import Any

import jax

from dynllava_jax.analysis.flops import peak_flops, training_flops
from dynllava_jax.benchmark.subjects import random_pixels, random_sample
from dynllava_jax.benchmark.timing import peak_bytes
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.data.batch import Batch, make_batch
from dynllava_jax.errors import InputError
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.sharding.specs import activation_sharding
from dynllava_jax.training.state import begin, fresh
from dynllava_jax.training.step import Trainer


def bench_step(
    model: ModelConfig, config: TrainConfig, *, length: int, images: int = 1, steps: int = 5
) -> dict[str, Any]:
    """The median of `steps` steps on full rows, after one that compiles.

    Args:
        model: the model's config; its weights are random.
        config: the run: batch, mesh, dtype, what is trained, remat, attention.
        length: S, tokens of each sample.
        images: M, pictures of each sample.
        steps: how many are timed.

    Raises:
        InputError: too few steps, images that do not fit the length, and what `Trainer` refuses.
    """
    text = length - images * model.image_tokens
    for name, value, least in (("images", images, 0), ("steps", steps, 1)):
        if value < least:
            raise InputError(f"--{name} must be {least} or more, not {value}.")
    if text < 2:
        taken = images * model.image_tokens
        raise InputError(f"{images} images take {taken} of {length} tokens; at least 2 must be left for text.")
    mesh = make_mesh(config.mesh)
    trainer = Trainer(model, config, mesh, total=steps + 1)
    state = begin(trainer.parameters, fresh(trainer.parameters, model, config.optimizer, 0), config.dtype, mesh)
    rows = config.global_batch_size
    samples = [random_sample(model, row, text=text, images=images, answer=text // 2) for row in range(rows)]
    pixels = [random_pixels(model, row, images) for row in range(rows)]
    batch = _placed(make_batch(samples, pixels, length=length, slots=images, rows=rows), trainer)
    times = []
    for _ in range(steps + 1):
        began = time.perf_counter()
        state, metrics = trainer.step(state, batch)
        jax.block_until_ready((state.step, metrics))
        times.append(time.perf_counter() - began)
    seconds = statistics.median(times[1:])
    devices = mesh.devices.size
    flops = training_flops(model, config.optimizer, rows=rows, length=length, slots=images)
    peak = peak_flops(mesh.devices.flat[0].device_kind)
    return {
        "batch": rows,
        "length": length,
        "images": images,
        "devices": devices,
        "step_seconds": seconds,
        "tokens_per_second": rows * length / seconds,
        "flops": flops,
        "tflops_per_device": flops / seconds / devices / 1e12,
        "mfu": None if peak is None else flops / seconds / devices / peak,
        "peak_bytes": peak_bytes(),
    }


def _placed(batch: Batch, trainer: Trainer) -> Batch:
    def put(x: Any) -> jax.Array:
        return jax.device_put(x, activation_sharding(x.shape, ("batch", *(None,) * (x.ndim - 1)), trainer.mesh))

    return jax.tree.map(put, batch)
