"""What a program is compiled for, which need not be the machine that one sits at."""

from typing import NamedTuple

import jax

from dynllava_jax.nn.constrain import compiled_for
from dynllava_jax.nn.jax_settings import default_device


class Target(NamedTuple):
    """A kind of device.

    Attributes:
        platform: "cpu", "gpu" or "tpu".
        kind: what it calls itself, such as "NVIDIA H100 80GB HBM3" or "TPU v5 lite".
    """

    platform: str
    kind: str


def target() -> Target:
    """The devices of the mesh whose constraints are in force, else those of the mesh in context, else JAX's default."""
    device = compiled_for() or getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None) or default_device()
    return Target(device.platform, device.device_kind)
