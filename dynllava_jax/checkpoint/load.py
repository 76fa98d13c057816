"""A checkpoint as a model: every leaf goes straight into its sharding and is stacked on the device."""

import functools
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental.layout import Format

from dynllava_jax.checkpoint.leaves import Target, abstract_model, is_selector, targets
from dynllava_jax.checkpoint.source import open_source
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.errors import InputError
from dynllava_jax.model.dynllava import DynamicLlava
from dynllava_jax.nn.flat import flatten, unflatten
from dynllava_jax.nn.jax_settings import random_key

ShardingRule = Callable[[DynamicLlava], Any]
"""An abstract model -> the same tree with a sharding, or a `Format`, in place of every parameter."""

Shardings = dict[str, jax.sharding.Sharding | Format]


def load(
    path: str | os.PathLike,
    config: ModelConfig | None = None,
    *,
    dtype: Any = None,
    sharding: ShardingRule | None = None,
    fresh: bool = False,
) -> DynamicLlava:
    """The model of `load_parameters`, its parameters committed to their shardings."""
    config = open_source(path).config if config is None else config
    params = load_parameters(path, config, dtype=dtype, sharding=sharding, fresh=fresh)
    return unflatten(abstract_model(config), params)


def load_parameters(
    path: str | os.PathLike,
    config: ModelConfig,
    *,
    only: Collection[str] | None = None,
    dtype: Any = None,
    sharding: ShardingRule | None = None,
    fresh: bool = False,
) -> dict[str, jax.Array]:
    """Reads a model or training checkpoint, one part of it at a time on the host.

    Args:
        path: the checkpoint, see `source.open_source`.
        config: the model wanted; another `sparse_layer`, other selectors or none (`config.sparsity.dense()`) than the
            checkpoint's are fine.
        only: paths of the parameters wanted; None: all.
        dtype: of the parameters; None keeps what is stored.
        sharding: where the parameters go, such as `lambda model: param_shardings(model, mesh, config)`; None: the
            default device.
        fresh: initialise selectors that the checkpoint lacks, instead of failing.

    Returns:
        The parameters by path.

    Raises:
        InputError: no checkpoint, a damaged leaf (named), or parameters that are missing, left over or of another
            shape (all in one message).
    """
    source = open_source(path)
    missing = check_complete(str(path), targets(config), source.shapes, fresh=fresh)
    wanted = [target for target in targets(config) if only is None or target.path in only]
    missing = [target for target in missing if target in wanted]
    slots = {leaf: (target, i) for target in wanted for i, leaf in enumerate(target.leaves) if leaf in source.shapes}
    where = {} if sharding is None else flatten(sharding(abstract_model(config)))
    params: dict[str, jax.Array] = {}
    for leaves in source.read(slots.keys()):
        for leaf, array in leaves.items():
            if leaf in slots:
                _place(params, *slots[leaf], array if dtype is None else array.astype(dtype), where)
    if missing:
        params |= _initialise(config, missing, dtype, where)
    return params


def leaf_shardings(config: ModelConfig, sharding: ShardingRule) -> dict[str, jax.sharding.Sharding | None]:
    """Where each leaf of a checkpoint belongs when its parameter belongs where `sharding` says."""
    where = flatten(sharding(abstract_model(config)))
    return {
        leaf: _layer_sharding(where[target.path]) if target.stacked else where[target.path]
        for target in targets(config)
        for leaf in target.leaves
    }


def fresh_parameters(config: ModelConfig, wanted: Sequence[Target], seed: int = 0) -> dict[str, jax.Array]:
    """Initial values of some parameters, the same for the same seed; the others are never computed."""
    names = {target.path for target in wanted}

    def initial() -> dict[str, jax.Array]:
        flat = flatten(DynamicLlava(nnx.Rngs(params=random_key(seed)), config))
        return {name: flat[name] for name in sorted(names)}

    return jax.jit(initial)()


def check_complete(
    path: str | os.PathLike, wanted: Sequence[Target], stored: Mapping[str, tuple[int, ...]], *, fresh: bool = False
) -> list[Target]:
    """Compares the shapes of the leaves in a checkpoint with those of a model.

    Returns:
        The targets to initialise: with `fresh`, selectors that the checkpoint lacks.

    Raises:
        InputError: leaves that are missing, left over or of another shape (all in one message).
    """
    problems, missing = [], []
    for target in wanted:
        absent = [leaf for leaf in target.leaves if leaf not in stored]
        if len(absent) == len(target.leaves) and fresh and is_selector(target.path):
            missing.append(target)
            continue
        problems += [f"{leaf} is missing" for leaf in absent]
        problems += [
            f"{leaf} has shape {list(stored[leaf])}, not {list(target.leaf_shape)}"
            for leaf in target.leaves
            if leaf in stored and stored[leaf] != target.leaf_shape
        ]
    used = {leaf for target in wanted for leaf in target.leaves}
    problems += [f"{leaf} is not part of the model" for leaf in stored if leaf not in used and not is_selector(leaf)]
    if problems:
        raise InputError(f"{path} does not fit the config asked for: {'; '.join(problems)}.{_advice(wanted, stored)}")
    return missing


def _advice(wanted: Sequence[Target], stored: Mapping[str, tuple[int, ...]]) -> str:
    """What to do where a selector asked for is no part of the checkpoint."""
    there = {leaf.partition("/")[0] for leaf in stored}
    lacking = {target.path.partition("/")[0] for target in wanted if is_selector(target.path)} - there
    return f" It has no {', '.join(sorted(lacking))}: train that upon it first." if lacking else ""


def _place(params: dict[str, jax.Array], target: Target, index: int, array: np.ndarray, shardings: Shardings) -> None:
    where = shardings.get(target.path)
    if not target.stacked:
        params[target.path] = jax.device_put(array, where)
        return
    if target.path not in params:
        params[target.path] = _empty(target.shape, array.dtype, where)()
    params[target.path] = _insert(where)(params[target.path], jax.device_put(array, _layer_sharding(where)), index)


def _layer_sharding(where: Any) -> jax.sharding.Sharding | None:
    """The sharding of one layer of a stack."""
    if isinstance(where, Format):
        return _layer_sharding(where.sharding)
    if isinstance(where, jax.sharding.NamedSharding):
        return jax.sharding.NamedSharding(where.mesh, jax.sharding.PartitionSpec(*tuple(where.spec)[1:]))
    return where


@functools.cache
def _empty(shape: tuple[int, ...], dtype: Any, where: jax.sharding.Sharding | Format | None) -> Callable[[], jax.Array]:
    return jax.jit(functools.partial(jnp.empty, shape, dtype), out_shardings=where)


@functools.cache
def _insert(where: jax.sharding.Sharding | Format | None) -> Callable[[jax.Array, jax.Array, int], jax.Array]:
    """Writes one layer into the stack in place: the stack is donated, so there is never a second copy."""
    return jax.jit(
        lambda stack, layer, index: jax.lax.dynamic_update_index_in_dim(stack, layer, index, 0),
        donate_argnums=0,
        out_shardings=where,
    )


def _initialise(
    config: ModelConfig, missing: Sequence[Target], dtype: Any, shardings: Shardings
) -> dict[str, jax.Array]:
    return {
        path: jax.device_put(value if dtype is None else value.astype(dtype), shardings.get(path))
        for path, value in fresh_parameters(config, missing).items()
    }
