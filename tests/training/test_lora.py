"""A run with adapters, and the model that is left of it: the same logits, by every way to that model."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from flax import nnx

import dynllava_jax as dl
from dynllava_jax.checkpoint import orbax_items, trained
from dynllava_jax.checkpoint.load import load
from dynllava_jax.cli.main import main
from dynllava_jax.config.presets import tiny
from dynllava_jax.config.training import LoraConfig
from dynllava_jax.model.dynllava import DynamicLlava
from dynllava_jax.nn.flat import flatten, unflatten
from dynllava_jax.testing import tiny_buckets
from dynllava_jax.training.decisions import InferenceRule
from dynllava_jax.training.forward import ForwardPlan, forward
from tests.training.batches import mixed
from tests.training.runs import run, write_data

pytestmark = pytest.mark.slow

LORA = LoraConfig(rank=2, alpha=4.0)


@pytest.fixture(scope="module")
def workdir(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lora")
    adapters = (f"--config.optimizer.lora.rank={LORA.rank}", f"--config.optimizer.lora.alpha={LORA.alpha}")
    more = ("--config.steps=3", "--config.log.health_every=0", "--config.optimizer.learning_rate=1e-2")
    assert run(write_data(folder / "data"), folder / "run", *adapters, *more, checkpoint=checkpoint) == 0
    return folder / "run"


@jax.jit
def logits(model: DynamicLlava) -> jax.Array:
    keys = jax.random.split(jax.random.key(0), 2)
    hidden = forward(model, mixed(tiny(), rows=2), keys, InferenceRule(), ForwardPlan()).hidden
    return model.decoder.logits(hidden)


@pytest.fixture(scope="module")
def wanted(workdir: Path, checkpoint: Path) -> np.ndarray:
    """Of the model as the run has it: frozen kernels, and adapters beside them."""
    step = trained.find(epath.Path(workdir))
    assert step is not None
    params = orbax_items.load_some(step, trained.PARAMS, trained.read_info(step).items[trained.PARAMS])
    assert sum(path.endswith("lora_b") and bool(value.any()) for path, value in params.items()) == 14
    values: dict[str, Any] = {**flatten(load(checkpoint)), **jax.tree.map(jnp.asarray, params)}
    model = jax.eval_shape(lambda: DynamicLlava(nnx.Rngs(params=jax.random.key(0)), tiny(), LORA))
    return np.asarray(logits(unflatten(model, values)))


def test_the_run_is_the_merged_model(workdir: Path, checkpoint: Path, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(logits(load(workdir)), wanted, rtol=0, atol=1e-5)
    bare = load(checkpoint)
    others = {path: value for path, value in flatten(load(workdir)).items() if not path.startswith("decoder/")}
    assert np.abs(logits(unflatten(bare, flatten(bare) | others)) - wanted).max() > 1e-2
    assert dl.load(workdir, buckets=tiny_buckets()).config.sparsity == tiny().sparsity


def test_the_merged_checkpoint_too(
    workdir: Path, wanted: np.ndarray, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["convert", "merge", str(workdir), str(tmp_path / "model"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["adapters"] == 14
    np.testing.assert_allclose(logits(load(tmp_path / "model")), wanted, rtol=0, atol=1e-5)
    assistant = dl.load(tmp_path / "model", buckets=tiny_buckets())
    assert assistant.tokenizer.decode(assistant.tokenizer.encode("a red cat", add_bos=False)) == "a red cat"
