"""What the forward pass of a training step leaves in memory for the backward pass.

B rows, S sequence, M images.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from dynllava_jax.analysis import aot
from dynllava_jax.nn.constrain import OneDevice, constraints
from dynllava_jax.nn.flat import flatten, unflatten
from dynllava_jax.training.decisions import GumbelRule, draw_noise
from dynllava_jax.training.loss import compute_loss, shares
from dynllava_jax.training.step import Trainer


def kept_activations(trainer: Trainer, batch: Any) -> int:
    """Bytes of one device that the backward pass of a micro-batch finds, under the config's remat policy.

    The loss is traced, not compiled, with the rows that a device holds at a time and the kernels of its kind. What
    JAX's backward pass takes over from the forward pass and grows with the rows is counted; weights, which it takes
    over too, do not grow. The compiler lays these arrays out among its temporaries. It is an upper bound: the compiler
    may compute elementwise ones again instead, and features that a mesh axis `tensor` splits are counted whole.

    Args:
        trainer: of the run.
        batch: shapes of the global batch, of those that `training.ahead.arguments` makes.
    """
    rows = trainer.division.rows
    return _residuals(trainer, batch, 2 * rows) - _residuals(trainer, batch, rows)


def _residuals(trainer: Trainer, batch: Any, rows: int) -> int:
    """Bytes that the backward pass of `rows` samples takes over, weights included."""
    shapes, parameters = flatten(trainer.parameters.abstract), trainer.parameters

    def weights(paths: tuple[str, ...], vectors: str) -> dict[str, Any]:
        """As the loss gets them: matrices in the compute dtype."""
        dtypes = {path: trainer.config.dtype if len(parameters.axes[path]) > 1 else vectors for path in paths}
        return {path: jax.ShapeDtypeStruct(shapes[path].shape, dtypes[path]) for path in paths}

    def backward(trained: dict[str, Any], frozen: dict[str, Any], part: Any) -> Any:
        keys = jax.random.split(jax.random.key(0), rows)
        rule = GumbelRule(draw_noise(part, keys, trainer.model_config.image_tokens), jnp.ones(()))
        share = shares(part.need_labels(), part.lengths)

        def loss(trained: dict[str, Any]) -> Any:
            model = unflatten(parameters.abstract, {**trained, **frozen})
            return compute_loss(model, part, keys, rule, share, trainer.plan).total

        return jax.vjp(loss, trained)[1]

    part = jax.tree.map(lambda x: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype), batch)
    trained = weights(parameters.trained, "float32")
    frozen = weights(parameters.frozen, trainer.config.dtype)
    device = trainer.mesh.devices.flat[0]
    with constraints(OneDevice(device)), aot.described(device):
        kept = jax.eval_shape(backward, trained, frozen, part)
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
