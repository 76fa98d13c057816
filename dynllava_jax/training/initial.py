"""The values that a run begins with: those of a checkpoint, and made ones for what it lacks."""

from pathlib import Path
from typing import NamedTuple

from jax.sharding import Mesh
from jaxtyping import Array

from dynllava_jax.checkpoint.leaves import is_selector, targets
from dynllava_jax.checkpoint.load import load
from dynllava_jax.checkpoint.source import open_source
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.nn.flat import flatten
from dynllava_jax.sharding.specs import param_shardings
from dynllava_jax.training.state import Parameters, fresh


class Initial(NamedTuple):
    """A value of every parameter, where it lies, and which of them come from no checkpoint."""

    values: dict[str, Array]
    made: tuple[str, ...]


def initial_values(parameters: Parameters, model: ModelConfig, config: TrainConfig, mesh: Mesh) -> Initial:
    """Reads `init.checkpoint`; what it lacks (predictors, adapters) and what `init.fresh` names comes from `init.seed`.

    Raises:
        InputError: no checkpoint there, a damaged one, one that does not fit the model.
    """
    made = made_paths(parameters, model, config)
    new = fresh(parameters, model, config.optimizer, config.init.seed, made) if made else {}
    if config.init.checkpoint is None:
        return Initial(new, made)
    read = load(
        Path(config.init.checkpoint),
        model,
        sharding=lambda abstract: param_shardings(abstract, mesh, model),
        fresh=True,
    )
    return Initial(flatten(read) | new, made)


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
