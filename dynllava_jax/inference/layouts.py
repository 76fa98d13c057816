"""Where the weights go and how they lie there: row by row, as decoding reads them.

A TPU stores an array by default with its dimensions in whatever order wastes least. Split over devices, the kernels
of the MLP would then lie transposed, and every segment would start with a copy of them.
"""

from typing import Any

import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh, Sharding, SingleDeviceSharding

from dynllava_jax.config.model import ModelConfig
from dynllava_jax.model.dynllava import DynamicLlava
from dynllava_jax.sharding.specs import param_shardings


def placement(model: DynamicLlava, where: Any, config: ModelConfig) -> Any:
    """The model with a sharding in place of every parameter, or a `Format` where the platform would reorder it.

    Args:
        model: real or abstract.
        where: a device or a mesh.
        config: the model's.
    """
    if isinstance(where, Mesh):
        shardings = param_shardings(model, where, config)
    else:
        shardings = jax.tree.map(lambda _: SingleDeviceSharding(where), model)
    return jax.tree.map(_row_major, model, shardings)


def _row_major(x: Any, sharding: Sharding) -> Sharding | Format:
    if next(iter(sharding.device_set)).platform != "tpu":
        return sharding
    return Format(Layout(tuple(range(len(x.shape)))), sharding)
