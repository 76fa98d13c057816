"""One training step by the trainer that users run: seconds, tokens, and the share of what the devices could do."""

import dataclasses
import statistics
import time
from typing import Any

import jax

from dynllava_jax.analysis.flops import peak_flops, training_flops
from dynllava_jax.benchmark.subjects import random_pixels, random_sample
from dynllava_jax.benchmark.timing import Machine, peak_bytes
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.data.batch import Batch, make_batch
from dynllava_jax.errors import InputError
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.sharding.specs import activation_sharding
from dynllava_jax.training.state import begin, fresh
from dynllava_jax.training.step import Trainer


@dataclasses.dataclass(frozen=True)
class StepShape:
    """What a step is measured on: `length` tokens of each sample, of which `images` pictures take their part."""

    length: int
    images: int

    def text(self, model: ModelConfig) -> int:
        """Tokens of a sample beside its images'.

        Raises:
            InputError: a negative number of images, or too many for the length.
        """
        taken = self.images * model.image_tokens
        if self.images < 0:
            raise InputError(f"--images must be 0 or more, not {self.images}.")
        if self.length - taken < 2:
            raise InputError(
                f"{self.images} images take {taken} of {self.length} tokens; at least 2 must be left for text."
            )
        return self.length - taken


def check_steps(steps: int) -> None:
    """Raises InputError where there would be nothing to time."""
    if steps < 1:
        raise InputError(f"--steps must be 1 or more, not {steps}.")


def bench_step(
    model: ModelConfig, config: TrainConfig, shape: StepShape, machine: Machine, *, steps: int = 5
) -> dict[str, Any]:
    """The median of `steps` steps on full rows, after one that compiles.

    Args:
        model: the model's config; its weights are random.
        config: the run: batch, mesh, dtype, what is trained, remat, attention.
        shape: of each sample.
        machine: what one device was measured to do.
        steps: how many are timed.

    Raises:
        InputError: too few steps, images that do not fit the length, and what `Trainer` refuses.
    """
    text, images = shape.text(model), shape.images
    check_steps(steps)
    mesh = make_mesh(config.mesh)
    trainer = Trainer(model, config, mesh, total=steps + 1)
    state = begin(trainer.parameters, fresh(trainer.parameters, model, config.optimizer, 0), config.dtype, mesh)
    rows = config.global_batch_size
    samples = [random_sample(model, row, text=text, images=images, answer=text // 2) for row in range(rows)]
    pixels = [random_pixels(model, row, images) for row in range(rows)]
    batch = _placed(make_batch(samples, pixels, length=shape.length, slots=images, rows=rows), trainer)
    before, times = peak_bytes(), []
    for _ in range(steps + 1):
        began = time.perf_counter()
        state, metrics = trainer.step(state, batch)
        jax.block_until_ready((state.step, metrics))
        times.append(time.perf_counter() - began)
    numbers = step_numbers(model, config, shape, statistics.median(times[1:]), mesh.devices.size, machine)
    return numbers | {"peak_bytes": peak_bytes(), "peak_bytes_before": before}


def step_numbers(
    model: ModelConfig, config: TrainConfig, shape: StepShape, seconds: float, devices: int, machine: Machine
) -> dict[str, Any]:
    """The record of a step that took so many seconds on so many devices, beside two peaks of each of them.

    `mfu` is by the data sheet's bfloat16, as usual (None where there is none), `share_of_matmul` by the matrix product
    that was measured.
    """
    rows = config.global_batch_size
    flops = training_flops(model, config.optimizer, rows=rows, length=shape.length, slots=shape.images)
    each, sheet = flops / seconds / devices, peak_flops(machine.kind)
    return {
        "batch": rows,
        **dataclasses.asdict(shape),
        "devices": devices,
        "step_seconds": seconds,
        "tokens_per_second": rows * shape.length / seconds,
        "flops": flops,
        "tflops_per_device": each / 1e12,
        "data_sheet_tflops": None if sheet is None else sheet / 1e12,
        "mfu": None if sheet is None else each / sheet,
        "share_of_matmul": each / machine.flops,
    }


def _placed(batch: Batch, trainer: Trainer) -> Batch:
    def put(x: Any) -> jax.Array:
        return jax.device_put(x, activation_sharding(x.shape, ("batch", *(None,) * (x.ndim - 1)), trainer.mesh))

    return jax.tree.map(put, batch)
