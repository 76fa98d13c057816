"""The parameter tree that converter and checkpoints rely on: paths are a contract."""

import dataclasses
from collections.abc import Callable

import jax
import pytest
from flax import nnx

from dynllava_jax.config.presets import tiny
from dynllava_jax.config.sparsity import LinearPredictor, Predictor
from dynllava_jax.config.vision import TokenPackerProjector
from dynllava_jax.model.predictors import learned
from dynllava_jax.model.projector import make_projector
from dynllava_jax.model.vision import VisionTower
from dynllava_jax.sparsify.selector import SelectorContext

BLOCK = "norm1/scale norm1/bias norm2/scale norm2/bias mlp/up/kernel mlp/up/bias mlp/down/kernel mlp/down/bias"


def _predictor(kind: Predictor) -> Callable[[], nnx.Module]:
    return lambda: learned(nnx.Rngs(params=0), SelectorContext(64, 16, 6, 0.4, kind, "image"))


def _linear(*names: str) -> str:
    return " ".join(f"{name}/kernel {name}/bias" for name in names)


def _norm(*names: str) -> str:
    return " ".join(f"{name}/scale {name}/bias" for name in names)


def _under(prefix: str, names: str) -> str:
    return " ".join(f"{prefix}/{name}" for name in names.split())


PACKED = dataclasses.replace(tiny(), projector=TokenPackerProjector(scale=2, width=16, num_heads=4, levels=(1, 2)))
ATTENTION = _linear("attention/query", "attention/key", "attention/value", "attention/out")
CASES: dict[str, tuple[Callable[[], object], str]] = {
    "vision": (
        lambda: VisionTower(nnx.Rngs(params=0), tiny()),
        "patch_embedding/kernel class_embedding position_embedding pre_norm/scale pre_norm/bias "
        + _under("layers", f"{BLOCK} {ATTENTION}"),
    ),
    "mlp projector": (lambda: make_projector(nnx.Rngs(params=0), tiny()), _linear("layers/0", "layers/1")),
    "token packer": (
        lambda: make_projector(nnx.Rngs(params=0), PACKED),
        f"query_proj/kernel {_norm('query_norm', 'key_norm', 'value_norm')} "
        + _linear("key_proj/0", "key_proj/1", "value_proj/0", "value_proj/1", "mlp/0", "mlp/1")
        + f" {_linear('attention_in', 'attention_out')}",
    ),
    "transformer": (
        _predictor(tiny().sparsity.image_predictor),
        f"{_norm('input_norm')} {_linear('input_proj', 'score/0', 'score/1', 'score/2')} "
        + _under("blocks", f"{BLOCK} qkv/kernel out/kernel out/bias"),
    ),
    "mlp": (
        _predictor(tiny().sparsity.text_predictor),
        f"{_norm('norm')} {_linear('layers/0', 'layers/1', 'layers/2', 'layers/3')}",
    ),
    "linear": (_predictor(LinearPredictor()), f"{_norm('norm')} {_linear('score')}"),
}


@pytest.mark.parametrize("case", CASES)
def test_paths(case: str) -> None:
    make, wanted = CASES[case]
    leaves = nnx.to_flat_state(nnx.state(jax.eval_shape(make)))
    assert {"/".join(map(str, path)) for path, _ in leaves} == set(wanted.split())


@pytest.mark.parametrize("case", CASES)
def test_every_parameter_names_its_axes(case: str) -> None:
    for path, leaf in nnx.to_flat_state(nnx.state(jax.eval_shape(CASES[case][0]))):
        stacked = path[0] == "blocks" or (case == "vision" and path[0] == "layers")
        assert len(leaf.get_metadata()["axes"]) == leaf.ndim - stacked, path
