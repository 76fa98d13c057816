"""What a run begins with: the checkpoint's values, and made ones where it has none or shall not be heard."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from dynllava_jax.checkpoint.load import load
from dynllava_jax.config.presets import tiny
from dynllava_jax.config.training import InitConfig, LoraConfig, OptimizerConfig, TrainConfig
from dynllava_jax.nn.flat import flatten
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.training.initial import initial_values
from dynllava_jax.training.state import Parameters, abstract_state, begin

MESH = make_mesh("fsdp=2,tensor=2", jax.devices()[:4])


def begun(checkpoint: Path | None, model: Any = None, lora: LoraConfig | None = None, **init: Any) -> Any:
    model = tiny() if model is None else model
    config = TrainConfig(
        model="tiny",
        init=InitConfig(None if checkpoint is None else str(checkpoint), **init),
        optimizer=OptimizerConfig(lora=lora),
    )
    parameters = Parameters.of(model, config.optimizer, MESH)
    return parameters, initial_values(parameters, model, config, MESH)


@pytest.fixture(scope="module")
def stored(checkpoint: Path) -> dict[str, np.ndarray]:
    return {path: np.asarray(value) for path, value in flatten(load(checkpoint)).items()}


def differing(values: dict[str, Any], stored: dict[str, np.ndarray]) -> set[str]:
    return {path for path, value in values.items() if path not in stored or not np.array_equal(value, stored[path])}


def test_a_whole_checkpoint_gives_everything(checkpoint: Path, stored: dict[str, np.ndarray]) -> None:
    parameters, initial = begun(checkpoint)
    assert initial.made == ()
    assert differing(initial.values, stored) == set()
    assert {path: value.sharding for path, value in initial.values.items()} == parameters.shardings
    state = begin(parameters, initial.values, "bfloat16", MESH)
    like = abstract_state(parameters, "bfloat16", MESH)
    assert jax.tree.map(lambda x: (x.shape, x.dtype, x.sharding), state) == jax.tree.map(
        lambda x: (x.shape, x.dtype, x.sharding), like
    )


@pytest.mark.parametrize(
    ("fresh", "parts"),
    [
        (("projector",), {"projector"}),
        pytest.param(("predictors",), {"image_predictor", "output_predictor"}, marks=pytest.mark.slow),
    ],
)
def test_what_shall_be_fresh_is_made_by_the_seed(
    fresh: tuple[str, ...], parts: set[str], checkpoint: Path, stored: dict[str, np.ndarray]
) -> None:
    parameters, initial = begun(checkpoint, fresh=fresh)
    assert {path.partition("/")[0] for path in initial.made} == parts
    assert differing(initial.values, stored) <= set(initial.made)
    kernels = {path for path in initial.made if path.endswith("kernel")}
    assert kernels <= differing(initial.values, stored)
    _, other = begun(checkpoint, fresh=fresh, seed=1)
    assert kernels <= differing(other.values, {path: np.asarray(x) for path, x in initial.values.items()})
    assert set(initial.values) == set(parameters.axes)


def test_predictors_and_adapters_that_are_not_there_are_made(checkpoint: Path, stored: dict[str, np.ndarray]) -> None:
    sparsity = dataclasses.replace(tiny().sparsity, instruct_selector="learned")
    model = dataclasses.replace(tiny(), sparsity=sparsity)
    _, initial = begun(checkpoint, model, LoraConfig(rank=2, targets=("query",)))
    parts = {path.partition("/")[0] for path in initial.made}
    assert parts == {"instruct_predictor", "decoder"}
    assert {path.rpartition("/")[2] for path in initial.made if path.startswith("decoder")} == {"lora_a", "lora_b"}
    assert differing(initial.values, stored) == set(initial.made)


@pytest.mark.slow
def test_without_a_checkpoint_all_is_made() -> None:
    parameters, initial = begun(None)
    assert set(initial.made) == set(initial.values) == set(parameters.axes)
