"""A small training state for tests of checkpoints: what a trainer holds, without a trainer."""

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dynllava_jax.config.presets import tiny
from dynllava_jax.training.checkpoint import TrainingCheckpoints

CONFIG = tiny()
DATA = {"config": "c0ffee", "data": "da7a"}


@functools.partial(jax.tree_util.register_dataclass, data_fields=["mu", "step"], meta_fields=[])
@dataclasses.dataclass
class Rest:
    """As an optimizer's state is: moments like the parameters, and a number."""

    mu: Any
    step: Any


def make(seed: int, mesh: Mesh | None = None) -> tuple[nnx.State, Rest]:
    """Parameters and the rest, the kernels split over the mesh's `fsdp` axis."""
    rng = np.random.default_rng(seed)

    def put(array: Any, *spec: str | None) -> jax.Array:
        where = jax.devices()[0] if mesh is None else NamedSharding(mesh, PartitionSpec(*spec))
        return jax.device_put(array, where)

    def params() -> nnx.State:
        weight = put(rng.standard_normal((2, 32, 64), np.float32), None, "fsdp")
        bias = put(rng.standard_normal(64).astype(jnp.bfloat16))
        return nnx.State({"block": {"kernel": nnx.Param(weight, axes=("embed", "mlp")), "bias": nnx.Param(bias)}})

    return params(), Rest(params(), put(np.int32(seed)))


def assert_same(found: Any, wanted: Any) -> None:
    """Same structure, same bits; the shardings may differ."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def open_run(workdir: Path, **options: Any) -> TrainingCheckpoints:
    return TrainingCheckpoints(workdir, CONFIG, **options)


def kernel(params: Any) -> jax.Array:
    return params["block"]["kernel"].get_value()


def save(workdir: Path, *steps: int, mesh: Mesh | None = None) -> None:
    """A run that saves `make(step)` at every one of these steps."""
    with open_run(workdir) as checkpoints:
        for step in steps:
            checkpoints.save_async(step, *make(step, mesh), DATA)
