"""The values that a run begins with: those of a checkpoint, and made ones for what it lacks."""

from collections.abc import Collection
from typing import NamedTuple

from jax.sharding import Mesh
from jaxtyping import Array

from dynllava_jax.checkpoint.leaves import is_selector, targets
from dynllava_jax.checkpoint.load import load_parameters
from dynllava_jax.checkpoint.source import open_source
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.sharding.specs import param_shardings
from dynllava_jax.training.state import Parameters, fresh


class Initial(NamedTuple):
    """A value of every parameter, where it lies, and which of them come from no checkpoint."""

    values: dict[str, Array]
    made: tuple[str, ...]


def initial_values(
    parameters: Parameters,
    model: ModelConfig,
    config: TrainConfig,
    mesh: Mesh,
    only: Collection[str] | None = None,
) -> Initial:
    """Reads `init.checkpoint`; what it lacks (predictors, adapters) and what `init.fresh` names comes from `init.seed`.

    `only` names the parameters wanted, None all; no other is read.

    Raises:
        InputError: no checkpoint there, a damaged one, one that does not fit the model.
    """
    wanted = tuple(parameters.axes) if only is None else tuple(only)
    made = tuple(path for path in made_paths(parameters, model, config) if path in wanted)
    new = fresh(parameters, model, config.optimizer, config.init.seed, made) if made else {}
    stored = set(wanted).difference(made)
    if config.init.checkpoint is None or not stored:
        return Initial(new, made)
    read = load_parameters(
        config.init.checkpoint,
        model,
        only=stored,
        sharding=lambda abstract: param_shardings(abstract, mesh, model),
        fresh=True,
    )
    return Initial(read | new, made)


def made_paths(parameters: Parameters, model: ModelConfig, config: TrainConfig) -> tuple[str, ...]:
    """Which parameters `init.seed` decides; untrained predictors that conversion added are among them."""
    if config.init.checkpoint is None:
        return tuple(parameters.axes)
    source = open_source(config.init.checkpoint)
    stored = {target.path for target in targets(model) if all(leaf in source.shapes for leaf in target.leaves)}
    untrained = {*source.facts.get("fresh", ()), *(["projector"] if "projector" in config.init.fresh else [])}

    def is_made(path: str) -> bool:
        renewed = is_selector(path) and "predictors" in config.init.fresh
        return path not in stored or renewed or path.partition("/")[0] in untrained

    return tuple(path for path in parameters.axes if is_made(path))
