"""A run with low-rank adapters loads as the model that it trained, or says why not."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynllava_jax.checkpoint import store
from dynllava_jax.checkpoint.load import load
from dynllava_jax.checkpoint.source import open_source
from dynllava_jax.config.presets import tiny
from dynllava_jax.config.training import LoraConfig
from dynllava_jax.errors import InputError
from dynllava_jax.model.dynllava import DynamicLlava
from dynllava_jax.nn.flat import flatten
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.sharding.specs import param_shardings
from dynllava_jax.training.checkpoint import TrainingCheckpoints
from tests.checkpoint.test_store import random_leaves

CONFIG = tiny()
LORA = LoraConfig(rank=2, alpha=3.0, targets=("query", "down"))


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "init"
    store.write(folder, CONFIG, random_leaves("bfloat16"))
    return folder


@pytest.fixture(scope="module")
def trained() -> dict[str, np.ndarray]:
    """Adapters and a projector with values that nothing else has."""
    rng = np.random.default_rng(1)
    shapes = flatten(jax.eval_shape(lambda: DynamicLlava(nnx.Rngs(params=jax.random.key(0)), CONFIG, LORA)))
    return {
        path: rng.standard_normal(leaf.shape).astype(np.float32)
        for path, leaf in shapes.items()
        if path.startswith("projector/") or path.endswith(("lora_a", "lora_b"))
    }


def save(workdir: Path, init: Path, params: dict[str, np.ndarray], lora: LoraConfig | None = LORA, **more: Any) -> Path:
    with TrainingCheckpoints(workdir, CONFIG, init=init, lora=lora) as checkpoints:
        checkpoints.save_async(1, jax.tree.map(jnp.asarray, params), {"step": jnp.int32(1)}, {}, **more)
    return workdir


def expected(before: dict[str, Any], trained: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """float64 all the way."""
    after = {path: np.asarray(value).astype(np.float64) for path, value in before.items()}
    for path, value in trained.items():
        layer, _, name = path.rpartition("/")
        if name == "lora_a":
            after[f"{layer}/kernel"] += 1.5 * value.astype(np.float64) @ trained[f"{layer}/lora_b"]
        elif name != "lora_b":
            after[path] = value.astype(np.float64)
    return after


def check(found: DynamicLlava, wanted: dict[str, np.ndarray]) -> None:
    values = flatten(found)
    assert values.keys() == wanted.keys()
    for path, value in values.items():
        np.testing.assert_allclose(np.asarray(value), wanted[path], rtol=1e-6, atol=1e-5, err_msg=path)


@pytest.mark.slow
def test_adapters_are_merged_in_float32(init: Path, trained: dict[str, np.ndarray], tmp_path: Path) -> None:
    run = save(tmp_path, init, trained)
    wanted = expected(flatten(load(init)), trained)
    found = load(run)
    check(found, wanted)
    touched = flatten(found)
    assert touched["decoder/deep/attention/query/kernel"].dtype == jnp.float32
    assert touched["decoder/deep/attention/key/kernel"].dtype == jnp.bfloat16
    check(load(run, dtype="float32"), wanted)
    mesh = make_mesh("fsdp=4,tensor=2")
    check(load(run, sharding=lambda model: param_shardings(model, mesh, CONFIG)), wanted)


@pytest.mark.slow
def test_another_sparse_layer_and_a_run_upon_a_run(init: Path, trained: dict[str, np.ndarray], tmp_path: Path) -> None:
    """A run that begins with one that had adapters begins with the merged kernels, and has its own adapters on top."""
    first = save(tmp_path / "first", init, trained)
    second = save(tmp_path / "second", first, trained)
    wanted = expected(expected(flatten(load(init)), trained), trained)
    check(load(second), wanted)
    other = dataclasses.replace(CONFIG, sparsity=dataclasses.replace(CONFIG.sparsity, sparse_layer=3))
    found = flatten(load(second, other))["decoder/shallow/mlp/down/kernel"]
    stacks = [wanted[f"decoder/{stack}/mlp/down/kernel"] for stack in ("shallow", "deep")]
    np.testing.assert_allclose(found, np.concatenate(stacks)[:3], rtol=1e-6, atol=1e-5)


@pytest.mark.slow
def test_kernels_that_the_run_kept_itself(init: Path, trained: dict[str, np.ndarray], tmp_path: Path) -> None:
    before = flatten(load(init))
    frozen = {path: jnp.asarray(value) for path, value in before.items() if path not in trained}
    with TrainingCheckpoints(tmp_path, CONFIG, lora=LORA) as checkpoints:
        checkpoints.save_async(1, jax.tree.map(jnp.asarray, trained), {"step": jnp.int32(1)}, {}, frozen=frozen)
    check(load(tmp_path), expected(before, trained))


def test_the_scale_is_part_of_the_content(init: Path, trained: dict[str, np.ndarray], tmp_path: Path) -> None:
    stronger = dataclasses.replace(LORA, alpha=6.0)
    runs = [save(tmp_path / "a", init, trained), save(tmp_path / "b", init, trained, stronger)]
    assert len({open_source(run).content_hash for run in runs}) == 2


def test_what_does_not_fit(init: Path, trained: dict[str, np.ndarray], tmp_path: Path) -> None:
    query = "decoder/deep/attention/query"
    with pytest.raises(InputError, match="has adapters but does not say how they are scaled"):
        load(save(tmp_path / "unscaled", init, trained, None))
    with pytest.raises(InputError, match=rf"{query}/lora_a has shape \[\d+, \d+, 2\], not \[\d+, \d+, 8\]; .* more\.$"):
        load(save(tmp_path / "rank", init, trained, LoraConfig(rank=8)))
    params = {path: value for path, value in trained.items() if path != f"{query}/lora_b"}
    params["decoder/deep/attention/quarry/lora_a"] = trained[f"{query}/lora_a"]
    wrong = rf"fit its model: the model has no decoder/deep/attention/quarry/kernel; {query}/lora_b is missing\.$"
    with pytest.raises(InputError, match=wrong):
        load(save(tmp_path / "half", init, params))
