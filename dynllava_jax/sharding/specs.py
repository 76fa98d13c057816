"""Shardings of parameters and activations on a mesh, from the axis names that they carry.

Every dimension that could not be split as the rules ask is either an error or one line in the log: a replicated
array is never a silent surprise.
"""

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.sparsity import TransformerPredictor
from dynllava_jax.errors import InputError
from dynllava_jax.nn.constrain import Axes, Constraint
from dynllava_jax.nn.param import AXES
from dynllava_jax.sharding.rules import RULES, Rules

_MAY_REPLICATE = ("kv_heads", "vocab")
"""Decoder axes that real checkpoints often have in odd numbers: few key/value heads, a vocabulary plus one token."""

_log = logging.getLogger(__name__)


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def param_shardings(tree: Any, mesh: Mesh, config: ModelConfig, rules: Rules = RULES) -> Any:
    """`tree` with every array replaced by its NamedSharding.

    Args:
        tree: a model, its state or an optimizer's state, real or abstract (`jax.eval_shape`); whatever is a
            `nnx.Variable` with axis names is split by them, everything else is replicated. A stacked parameter has
            one dimension more than names, in front, which is not split.

    Raises:
        InputError: the mesh does not divide the decoder's heads or features.
    """

    def one(path: tuple[Any, ...], leaf: Any) -> Any:
        if not isinstance(leaf, nnx.Variable):
            return replicated(mesh)
        axes = leaf.get_metadata().get(AXES)
        if axes is None:
            return leaf.replace(replicated(mesh))
        names = tuple(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
        return leaf.replace(param_sharding(names, leaf.get_value().shape, axes, mesh, config, rules))

    return jax.tree_util.tree_map_with_path(one, tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def param_sharding(
    path: Sequence[str],
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    mesh: Mesh,
    config: ModelConfig,
    rules: Rules = RULES,
) -> NamedSharding:
    """The sharding of one parameter, such as `("decoder", "shallow", "attention", "key", "kernel")`."""
    axes = (None,) * (len(shape) - len(axes)) + axes
    counts = _head_counts(config)
    part = next((name for name in path if name in counts), "parameter")
    spec: list[tuple[str, ...]] = []
    for size, axis, over in zip(shape, axes, rules.parameter(axes), strict=True):
        # Kernels are two-dimensional, [in, heads · head_dim]: a head is the unit that must not be cut.
        units = counts.get(part, {}).get(axis or "", size)
        if units % _size(mesh, over) == 0:
            spec.append(over)
            continue
        if part == "decoder" and axis not in _MAY_REPLICATE:
            raise InputError(
                f"Mesh {_spell(mesh, over)} does not divide the decoder's {axis} ({units}); use a size that does."
            )
        _log_once(f"{part} {axis} ({units}) replicated: mesh {_spell(mesh, over)} does not divide it")
        spec.append(())
    return _named(mesh, spec)


def activation_sharding(
    shape: tuple[int, ...], axes: tuple[str | None, ...], mesh: Mesh, rules: Rules = RULES
) -> NamedSharding:
    """The sharding of an activation, an input or a cache, one logical name per dimension.

    A dimension that the mesh does not divide is split over as many of its mesh axes as do, the first ones first.
    """
    spec: list[tuple[str, ...]] = []
    for size, axis, wanted in zip(shape, axes, rules.activation(axes), strict=True):
        over = wanted
        while size % _size(mesh, over):
            over = over[:-1]
        if over != wanted:
            told = f"split over {_spell(mesh, over)} alone" if over else "replicated"
            _log_once(f"activation {axis} ({size}) {told}: mesh {_spell(mesh, wanted)} does not divide it")
        spec.append(over)
    return _named(mesh, spec)


def batch_parts(mesh: Mesh) -> int:
    """Into how many parts a mesh splits the rows of a batch."""
    return _size(mesh, RULES.batch.activation)


def activation_constraint(mesh: Mesh, rules: Rules = RULES) -> Constraint:
    """What `nn.constrain.constraints` takes while a function is traced for `mesh`."""
    return _Activations(mesh, rules)


@dataclasses.dataclass(frozen=True)
class _Activations:
    """See `nn.constrain.Constraint`."""

    mesh: Mesh
    rules: Rules

    @property
    def device(self) -> Any:
        return self.mesh.devices.flat[0]

    def __call__(self, x: jax.Array, axes: Axes) -> jax.Array:
        return jax.lax.with_sharding_constraint(x, activation_sharding(x.shape, axes, self.mesh, self.rules))

    def per_shard(self, function: Callable[..., Any], args: tuple[Any, ...], axes: tuple[Axes, ...], out: Axes) -> Any:
        def specs(tree: Any, names: Axes) -> Any:
            return jax.tree.map(lambda x: activation_sharding(x.shape, names, self.mesh, self.rules).spec, tree)

        out_specs = specs(jax.eval_shape(function, *args), out)
        # With check_vma, Pallas calls would have to declare over which axes their results vary.
        mapped = jax.shard_map(
            function, mesh=self.mesh, in_specs=tuple(map(specs, args, axes)), out_specs=out_specs, check_vma=False
        )
        return mapped(*args)


def _head_counts(config: ModelConfig) -> dict[str, dict[str, int]]:
    """Heads of each part of the model that has some."""
    counts = {
        "decoder": {"heads": config.decoder.num_heads, "kv_heads": config.decoder.num_kv_heads},
        "vision": {"heads": config.vision.num_heads},
    }
    if isinstance(predictor := config.sparsity.image_predictor, TransformerPredictor):
        counts["image_predictor"] = {"heads": predictor.num_heads}
    return counts


def _size(mesh: Mesh, over: tuple[str, ...]) -> int:
    return math.prod(mesh.shape[axis] for axis in over)


def _spell(mesh: Mesh, over: tuple[str, ...]) -> str:
    return ",".join(f"{axis}={mesh.shape[axis]}" for axis in over)


def _named(mesh: Mesh, spec: list[tuple[str, ...]]) -> NamedSharding:
    # Axes of size 1 are left out, so that equal placements have equal specs whatever the mesh is called.
    dimensions = (tuple(axis for axis in over if mesh.shape[axis] > 1) for over in spec)
    return NamedSharding(
        mesh, PartitionSpec(*(over if len(over) > 1 else (over[0] if over else None) for over in dimensions))
    )


@functools.cache
def _log_once(message: str) -> None:
    _log.info(message)
