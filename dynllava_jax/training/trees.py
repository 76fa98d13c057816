"""State as a flat dict path -> array and back; the form that checkpoints have."""

from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx

from dynllava_jax.errors import InputError


def flatten(tree: Any) -> dict[str, Any]:
    """The arrays (or their shapes) of a pytree by path, such as `decoder/deep/mlp/up/kernel`; an `nnx.Variable` is one.

    Raises:
        InputError: an array without elements, which Orbax cannot keep.
    """
    leaves, _ = _leaves(tree)
    flat = {_name(path): leaf.get_value() if isinstance(leaf, nnx.Variable) else leaf for path, leaf in leaves}
    if len(flat) != len(leaves):
        raise ValueError("two leaves of a tree have the same path")
    for name, leaf in flat.items():
        if 0 in leaf.shape:
            raise InputError(f"{name} has shape {list(leaf.shape)}: an array without elements cannot be stored.")
    return flat


def placed_shapes(tree: Any) -> dict[str, jax.ShapeDtypeStruct]:
    """As `flatten`, without the values: what to restore and where to."""
    flat = flatten(tree)
    for name, leaf in flat.items():
        if leaf.sharding is None:
            raise ValueError(f"{name} has no sharding to go to")
    return {name: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding) for name, leaf in flat.items()}


def unflatten(like: Any, flat: Mapping[str, jax.Array]) -> Any:
    """`like` with every leaf replaced by the array of its path."""
    leaves, treedef = _leaves(like)
    values = (flat[_name(path)] for path, _ in leaves)
    pairs = zip(leaves, values, strict=True)
    return treedef.unflatten(
        leaf.replace(value) if isinstance(leaf, nnx.Variable) else value for (_, leaf), value in pairs
    )


def _leaves(tree: Any) -> Any:
    return jax.tree_util.tree_flatten_with_path(tree, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable))


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "name", getattr(key, "idx", key)))) for key in path)
