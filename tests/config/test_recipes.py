"""The shipped configs: the numbers of the recipes that they claim to be."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from dynllava_jax.config.data import DataConfig
from dynllava_jax.config.experiment import read_experiment
from dynllava_jax.config.presets import get_preset
from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.config.training import OptimizerConfig, TrainConfig

CONFIGS = Path(__file__).parents[2] / "configs"

PAPER: dict[str, Any] = {
    "optimizer.learning_rate": 5e-6,
    "optimizer.predictor_learning_rate": 2e-4,
    "optimizer.weight_decay": 0.0,
    "optimizer.predictor_weight_decay": 0.0,
    "optimizer.warmup_ratio": 0.03,
    "optimizer.beta1": 0.9,
    "optimizer.beta2": 0.999,
    "optimizer.eps": 1e-8,
    "optimizer.clip_norm": 1.0,
    "optimizer.freeze_vision": True,
    "optimizer.freeze_projector": False,
    "optimizer.freeze_decoder": False,
    "optimizer.freeze_predictors": False,
    "optimizer.lora": None,
    "loss.mask_weight": 100.0,
    "loss.min_answer_tokens": 50,
    "gumbel.start": 1.0,
    "gumbel.end": 0.1,
    "data.max_length": 2048,
    "data.require_image": True,
    "data.weights": (),
    "global_batch_size": 64,
    "device_batch_size": None,
    "epochs": 1.0,
    "steps": None,
    "dtype": "bfloat16",
    "template": None,
    "image_aspect": None,
    "init.fresh": (),
}
LLAVA: dict[str, Any] = PAPER | {"data.require_image": False}

RECIPES: dict[str, dict[str, Any]] = {
    "dynamic_llava_7b": PAPER | {"model": "dynamic_llava_7b"},
    "dynamic_llava_13b": PAPER | {"model": "dynamic_llava_13b", "device_batch_size": 4},
    "vision_only": PAPER | {"model": "dynamic_llava_7b"},
    "tokenpacker": PAPER | {"model": "dynamic_tokenpacker_7b"},
    "predictors_only": PAPER
    | {"model": "dynamic_llava_7b", "optimizer.freeze_projector": True, "optimizer.freeze_decoder": True},
    "dense_control": PAPER | {"model": "llava_1_5_7b"},
    "llava_pretrain": PAPER
    | {
        "model": "llava_1_5_7b",
        "template": "plain",
        "image_aspect": "crop",
        "init.fresh": ("projector",),
        "optimizer.learning_rate": 1e-3,
        "optimizer.freeze_decoder": True,
        "global_batch_size": 256,
    },
    "llava_finetune": LLAVA
    | {
        "model": "llava_1_5_7b",
        "template": "vicuna_v1",
        "image_aspect": "pad",
        "optimizer.learning_rate": 2e-5,
        "global_batch_size": 128,
    },
    "tiny": {"model": "tiny", "dtype": "float32", "global_batch_size": 8, "data.max_length": 256},
}

TOKENS = {
    "dynamic_llava_7b": (576, 115, 0.5),
    "dynamic_llava_13b": (576, 115, 0.5),
    "vision_only": (576, 115, None),
    "tokenpacker": (144, 57, 0.5),
    "predictors_only": (576, 115, 0.5),
    "dense_control": (576, 576, None),
    "llava_pretrain": (576, 576, None),
    "llava_finetune": (576, 576, None),
    "tiny": (16, 6, 0.5),
}
"""Image tokens, kept image tokens, output keep rate."""


def get(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


def test_every_config_has_its_recipe_here() -> None:
    assert {file.stem for file in CONFIGS.glob("*.py")} == set(RECIPES) == set(TOKENS)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe(name: str) -> None:
    config = read_experiment(str(CONFIGS / f"{name}.py"))
    assert {key: get(config, key) for key in RECIPES[name]} == RECIPES[name]
    assert config.model is not None
    model = get_preset(config.model)
    model = dataclasses.replace(model, sparsity=config.sparsity or model.sparsity)
    rate = None if model.sparsity.output_selector is None else model.sparsity.output_keep_rate
    assert (model.image_tokens, model.kept_image_tokens, rate) == TOKENS[name]
    learned = {model.sparsity.image_selector, model.sparsity.output_selector} - {None}
    assert learned <= {"learned"}


def test_the_paper_recipe_is_the_default() -> None:
    assert read_experiment(str(CONFIGS / "dynamic_llava_7b.py")) == TrainConfig()
    # What is not said by the recipe stays at its default in every config but the one for tests.
    for name in set(RECIPES) - {"tiny"}:
        config = read_experiment(str(CONFIGS / f"{name}.py"))
        assert dataclasses.replace(config.data, require_image=True) == DataConfig()
        assert config.optimizer.lora is None
        assert OptimizerConfig().predictor_learning_rate == config.optimizer.predictor_learning_rate
        assert config.sparsity in (None, SparsityConfig(output_selector=None))
