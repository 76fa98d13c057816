"""The training step compiled for machines that are not there, so that its memory is known before they are rented.

S sequence, M images.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from dynllava_jax.analysis import aot
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.data.batch import Batch
from dynllava_jax.nn.constrain import constraints
from dynllava_jax.sharding.specs import activation_constraint, activation_sharding
from dynllava_jax.sharding.xla_options import xla_options
from dynllava_jax.training.state import abstract_state, state_shardings
from dynllava_jax.training.step import Trainer


def compile_step(
    model: ModelConfig, config: TrainConfig, mesh: Mesh, *, length: int, images: int = 1
) -> jax.stages.Compiled:
    """Compiles one optimizer step on `mesh`, whose devices may be described ones (`analysis.aot.topology`).

    Args:
        model: the model's config.
        config: the run's.
        mesh: devices.
        length: S.
        images: M.

    Raises:
        InputError: what `Trainer` refuses.
    """
    trainer = Trainer(model, config, mesh, total=1000)
    where = state_shardings(trainer.parameters, mesh)
    out = ((where.params, where.adam, where.step), None)
    with constraints(activation_constraint(mesh)):
        return aot.compile_ahead(
            trainer.step_body,
            *arguments(trainer, length, images),
            donate_argnums=(0,),
            out_shardings=out,
            compiler_options=xla_options(mesh.devices.flat[0], config.dtype, keeps_products=trainer.keeps_products),
        )


def arguments(trainer: Trainer, length: int, images: int = 1) -> tuple[tuple[Any, ...], dict[str, Any], Batch]:
    """What `Trainer.step_body` takes, as shapes that lie where they will lie."""
    state = abstract_state(trainer.parameters, trainer.config.dtype, trainer.mesh)
    batch = _batch(trainer.model_config, trainer.config.global_batch_size, length, images, trainer.mesh)
    return (state.params, state.adam, state.step), state.frozen, batch


def _batch(model: ModelConfig, rows: int, length: int, images: int, mesh: Mesh) -> Batch:
    def shape(*sizes: int, dtype: object = jnp.int32) -> jax.ShapeDtypeStruct:
        where = activation_sharding((rows, *sizes), ("batch", *(None,) * len(sizes)), mesh)
        return jax.ShapeDtypeStruct((rows, *sizes), dtype, sharding=where)

    flat, row, side = shape(length), shape(), model.vision.image_size
    pixels = shape(images, side, side, 3, dtype=jnp.float32) if images else None
    return Batch(flat, flat, flat, row, row, pixels, flat)
