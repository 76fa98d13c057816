"""The state of a run: trained parameters and their moments in float32, where each of them lies, how they begin."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jaxtyping import Array, Int

from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.training import OptimizerConfig
from dynllava_jax.errors import InputError
from dynllava_jax.model.dynllava import DynamicLlava
from dynllava_jax.nn.flat import axes_of, flatten
from dynllava_jax.nn.jax_settings import random_key
from dynllava_jax.nn.param import AXES
from dynllava_jax.sharding.specs import param_shardings, replicated
from dynllava_jax.training.optimizer import Adam, start
from dynllava_jax.training.partition import is_trained

# A field holds arrays or, since a state is a pytree, what stands in their place in a tree of shapes or shardings.


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """What a step changes, and the frozen parameters that it does not.

    Attributes:
        params: trained parameters by path, float32.
        adam: their moments.
        step: steps done.
        frozen: the other parameters, in the compute dtype.
    """

    params: dict[str, Any]
    adam: Adam
    step: Int[Array, ""] | Any
    frozen: dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Parameters:
    """A model's parameters as training sees them, before any of them exists.

    Attributes:
        abstract: the model with shapes in place of arrays.
        axes: axis names by path.
        shardings: by path.
        trained, frozen: the paths of each kind.
    """

    abstract: DynamicLlava
    axes: dict[str, tuple[str | None, ...]]
    shardings: dict[str, NamedSharding]
    trained: tuple[str, ...]
    frozen: tuple[str, ...]

    @staticmethod
    def of(config: ModelConfig, optimizer: OptimizerConfig, mesh: Mesh) -> "Parameters":
        """Raises InputError when the mesh does not divide the decoder's heads or features, or nothing is trained."""
        abstract = jax.eval_shape(lambda: DynamicLlava(nnx.Rngs(params=jax.random.key(0)), config, optimizer.lora))
        axes = axes_of(abstract, AXES)
        trained = tuple(path for path in axes if is_trained(path, optimizer))
        if not trained:
            raise InputError(
                "optimizer freezes every part that has parameters in this model: an identity projector has none, nor "
                "have selectors that learn nothing; freeze less, or choose sparsity or projector otherwise."
            )
        return Parameters(
            abstract=abstract,
            axes=axes,
            shardings=flatten(param_shardings(abstract, mesh, config)),
            trained=trained,
            frozen=tuple(path for path in axes if not is_trained(path, optimizer)),
        )


def fresh(
    parameters: Parameters,
    config: ModelConfig,
    optimizer: OptimizerConfig,
    seed: int,
    only: Collection[str] | None = None,
) -> dict[str, Array]:
    """Initial values, float32, each made where it lies: of all parameters, or of `only` these paths."""
    wanted = parameters.axes if only is None else only

    def make() -> dict[str, Array]:
        made = flatten(DynamicLlava(nnx.Rngs(params=random_key(seed)), config, optimizer.lora))
        return {path: made[path] for path in wanted}

    return jax.jit(make, out_shardings={path: parameters.shardings[path] for path in wanted})()


def begin(parameters: Parameters, values: Mapping[str, Array], dtype: str, mesh: Mesh) -> TrainState:
    """The state before the first step, from a value of every parameter.

    Values that are as the state wants them become part of it and are gone for the caller: a second copy of all
    parameters would be the most memory that a run ever needs, and leave a hole as large as itself.

    Raises:
        InputError: parameters without a value, all named.
    """
    if missing := [path for path in parameters.axes if path not in values]:
        raise InputError(f"The model's parameters {', '.join(missing[:5])} have no value to begin with.")

    def make(given: dict[str, Array], rest: dict[str, Array]) -> TrainState:
        values = given | rest
        params = {path: values[path].astype(jnp.float32) for path in parameters.trained}
        frozen = {path: values[path].astype(dtype) for path in parameters.frozen}
        return TrainState(params, start(params), jnp.zeros((), jnp.int32), frozen)

    def ready(path: str) -> bool:
        value = values[path]
        if not isinstance(value, jax.Array) or value.dtype != (jnp.float32 if path in trained else dtype):
            return False
        return value.sharding.is_equivalent_to(parameters.shardings[path], value.ndim)

    trained = frozenset(parameters.trained)
    given = {path: values[path] for path in parameters.axes if ready(path)}
    rest = {path: values[path] for path in parameters.axes if path not in given}
    return jax.jit(make, out_shardings=state_shardings(parameters, mesh), donate_argnums=(0,))(given, rest)


def abstract_state(parameters: Parameters, dtype: str, mesh: Mesh) -> TrainState:
    """A state with shapes in place of arrays, each with its sharding: to read a checkpoint into, or to compile for."""
    shapes = flatten(parameters.abstract)

    def described(paths: Collection[str], dtype: Any) -> dict[str, Any]:
        return {
            path: jax.ShapeDtypeStruct(shapes[path].shape, dtype, sharding=parameters.shardings[path]) for path in paths
        }

    step: Any = jax.ShapeDtypeStruct((), jnp.int32, sharding=replicated(mesh))
    moments = Adam(*(described(parameters.trained, jnp.float32) for _ in range(2)))
    params = described(parameters.trained, jnp.float32)
    return TrainState(params, moments, step, described(parameters.frozen, jnp.dtype(dtype)))


def state_shardings(parameters: Parameters, mesh: Mesh) -> TrainState:
    """A state with shardings in place of arrays."""
    trained = {path: parameters.shardings[path] for path in parameters.trained}
    frozen = {path: parameters.shardings[path] for path in parameters.frozen}
    return TrainState(trained, Adam(trained, dict(trained)), replicated(mesh), frozen)
