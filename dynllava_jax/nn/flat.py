"""A model as a flat dict of arrays by path ("decoder/deep/mlp/up/kernel"), and back."""

from collections.abc import Mapping
from typing import Any, TypeVar

from flax import nnx

Model = TypeVar("Model", bound=nnx.Module)


def flatten(model: nnx.Module) -> dict[str, Any]:
    """Every parameter's value, in the order of the model; of an abstract model the shapes, or whatever stands there."""
    return {"/".join(map(str, path)): param.get_value() for path, param in nnx.to_flat_state(nnx.state(model))}


def axes_of(model: nnx.Module, key: str) -> dict[str, tuple[str | None, ...]]:
    """Every parameter's axis names, which its metadata holds under `key`; one without any has None for each dimension.

    Those of an own selector may be made by Flax itself (`nnx.Param`, `nnx.Linear`), which knows no axis names.
    """
    flat = nnx.to_flat_state(nnx.state(model))
    return {"/".join(map(str, path)): param.get_metadata().get(key, (None,) * param.ndim) for path, param in flat}


def unflatten(abstract: Model, values: Mapping[str, Any]) -> Model:
    """A model of the shape of `abstract` with these values; each of its parameters needs one."""
    graph, state = nnx.split(abstract)
    flat = [(path, param.replace(values["/".join(map(str, path))])) for path, param in nnx.to_flat_state(state)]
    return nnx.merge(graph, nnx.from_flat_state(flat))
