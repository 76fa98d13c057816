"""A checkpoint as a model: any sparse layer, any selectors, any mesh, the same numbers."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from dynllava_jax.checkpoint import store
from dynllava_jax.checkpoint.leaves import abstract_model, leaf_shapes, targets
from dynllava_jax.checkpoint.load import load
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.presets import dynamic_llava_7b
from dynllava_jax.errors import InputError
from dynllava_jax.nn.param import normal, param
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.sharding.specs import param_shardings
from dynllava_jax.sparsify.selector import SelectorContext
from tests.checkpoint.test_store import CONFIG, random_leaves
from tests.inference import own_selectors


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("load") / "ckpt"
    store.write(path, CONFIG, random_leaves())
    return path


def params(model: nnx.Module) -> dict[str, jax.Array]:
    return {"/".join(map(str, name)): param.get_value() for name, param in nnx.to_flat_state(nnx.state(model))}


def with_sparsity(**changes: object) -> ModelConfig:
    return dataclasses.replace(CONFIG, sparsity=dataclasses.replace(CONFIG.sparsity, **changes))


def test_a_selector_that_was_written_anew_is_the_one_that_is_built(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a notebook's cell with `__main__:Class` is changed and run again."""
    config = with_sparsity(tower_selector="tests.inference.own_selectors:Norm", tower_keep_rate=0.5)
    assert abstract_model(config) is abstract_model(config)
    assert type(load(checkpoint, config).tower_selector) is own_selectors.Norm

    class Anew(own_selectors.Norm):
        def __init__(self, rngs: nnx.Rngs, context: SelectorContext):
            self.weight = param(rngs, (3,), (None,), normal(1.0))

    monkeypatch.setattr(own_selectors, "Norm", Anew)
    assert type(load(checkpoint, config, fresh=True).tower_selector) is Anew
    assert "tower_selector/weight" in leaf_shapes(config)


@pytest.mark.parametrize("sparse_layer", [1, 2, 3])
def test_any_sparse_layer(checkpoint: Path, sparse_layer: int) -> None:
    found = params(load(checkpoint, with_sparsity(sparse_layer=sparse_layer)))
    stored = dict(random_leaves())
    kernels = [stored[f"decoder/layers/{i}/mlp/up/kernel"] for i in range(CONFIG.decoder.num_layers)]
    np.testing.assert_array_equal(found["decoder/shallow/mlp/up/kernel"], np.stack(kernels[:sparse_layer]))
    np.testing.assert_array_equal(found["decoder/deep/mlp/up/kernel"], np.stack(kernels[sparse_layer:]))
    np.testing.assert_array_equal(found["vision/layers/norm1/bias"][1], stored["vision/layers/1/norm1/bias"])


def test_dense_leaves_the_predictors_out(checkpoint: Path) -> None:
    model = load(checkpoint, dataclasses.replace(CONFIG, sparsity=CONFIG.sparsity.dense()))
    assert model.image_predictor is None
    assert model.config.sparsity.image_selector is None


@pytest.mark.slow
def test_selectors_that_the_checkpoint_lacks(tmp_path: Path) -> None:
    lacking = [(name, leaf) for name, leaf in random_leaves() if not name.startswith("output_predictor")]
    store.write(tmp_path / "ckpt", CONFIG, lacking)
    with pytest.raises(InputError, match=r"output_predictor/layers/0/bias is missing; .*has no output_pred.* train"):
        load(tmp_path / "ckpt")
    found = params(load(tmp_path / "ckpt", fresh=True, dtype="bfloat16"))
    assert np.all(found["output_predictor/norm/scale"] == 1)
    assert found["output_predictor/layers/0/kernel"].dtype == "bfloat16"
    again = params(load(tmp_path / "ckpt", fresh=True, dtype="bfloat16"))
    np.testing.assert_array_equal(found["output_predictor/layers/0/kernel"], again["output_predictor/layers/0/kernel"])


def test_what_does_not_fit_is_listed_at_once(checkpoint: Path) -> None:
    wider = dataclasses.replace(CONFIG.decoder, vocab_size=600, num_layers=5)
    with pytest.raises(InputError) as caught:
        load(checkpoint, dataclasses.replace(CONFIG, decoder=wider))
    assert "It has no" not in str(caught.value)
    for needle in ("decoder/layers/4/mlp/up/kernel is missing", "decoder/embedding has shape [512, 64], not [600, 64]"):
        assert needle in str(caught.value)
    fewer = dataclasses.replace(CONFIG.decoder, num_layers=3)
    with pytest.raises(InputError, match="decoder/layers/3/attention/key/kernel is not part of the model"):
        load(checkpoint, dataclasses.replace(CONFIG, decoder=fewer))


@pytest.mark.parametrize("spec", ["data=2,fsdp=2,tensor=2", pytest.param("fsdp=4,tensor=2", marks=pytest.mark.slow)])
def test_onto_a_mesh(checkpoint: Path, spec: str) -> None:
    mesh = make_mesh(spec)
    alone = params(load(checkpoint))
    split = params(load(checkpoint, sharding=lambda model: param_shardings(model, mesh, CONFIG)))
    assert alone.keys() == split.keys()
    for name, value in split.items():
        assert isinstance(value.sharding, jax.sharding.NamedSharding)
        assert value.sharding.mesh == mesh
        np.testing.assert_array_equal(value, alone[name])
    kernel = split["decoder/deep/mlp/up/kernel"]
    assert kernel.addressable_shards[0].data.size < kernel.size


def test_dtype_is_converted_on_the_way(checkpoint: Path) -> None:
    assert {str(value.dtype) for value in params(load(checkpoint, dtype="bfloat16")).values()} == {"bfloat16"}


def test_leaves_at_full_size() -> None:
    """Each leaf fills one place of one parameter; no array is made."""
    config = dynamic_llava_7b()
    wanted = targets(config)
    leaves = [leaf for target in wanted for leaf in target.leaves]
    assert len(leaves) == len(set(leaves)) == len(leaf_shapes(config))
    assert leaf_shapes(config)["decoder/layers/31/mlp/down/kernel"] == (11008, 4096)
    assert leaf_shapes(config)["vision/layers/22/attention/out/kernel"] == (1024, 1024)
