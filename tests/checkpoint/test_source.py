"""A training checkpoint is a model: its own parameters, the frozen ones from where they came."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import dynllava_jax as dl
from dynllava_jax.checkpoint import store
from dynllava_jax.checkpoint import trained as trained_files
from dynllava_jax.checkpoint.leaves import targets
from dynllava_jax.checkpoint.load import load
from dynllava_jax.checkpoint.source import open_source
from dynllava_jax.config.presets import tiny
from dynllava_jax.data.tokenizer import FILES as TOKENIZER
from dynllava_jax.errors import InputError
from dynllava_jax.model.dynllava import DynamicLlava
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.sharding.specs import param_shardings
from dynllava_jax.testing import tiny_buckets, write_tokenizer
from dynllava_jax.training.checkpoint import TrainingCheckpoints
from tests.checkpoint.test_store import random_leaves

CONFIG = tiny()
STEP = {"step": jnp.int32(3)}


def split(model: DynamicLlava) -> tuple[nnx.State, nnx.State]:
    """Trained and frozen: the vision tower is frozen."""
    _, frozen, params = nnx.split(model, lambda path, value: path[0] == "vision", ...)
    return params, frozen


FROZEN = [target.path for target in targets(CONFIG) if target.path.startswith("vision/")]


def flat(model: nnx.Module) -> dict[str, jax.Array]:
    return {"/".join(map(str, path)): param.get_value() for path, param in nnx.to_flat_state(nnx.state(model))}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`init`, a model checkpoint, and `workdir`, a run that added 1 to everything but the tower. Do not change it."""
    folder = tmp_path_factory.mktemp("source")
    write_tokenizer(folder)
    files = {name: (folder / name).read_bytes() for name in TOKENIZER if (folder / name).exists()}
    facts = {"fresh": ["output_predictor"]}
    store.write(folder / "init", CONFIG, random_leaves("bfloat16"), extras=store.Extras(files, facts))
    params, _ = split(load(folder / "init", dtype="float32"))
    with TrainingCheckpoints(folder / "workdir", CONFIG, init=folder / "init") as checkpoints:
        for step in (1, 2):
            trained = jax.tree.map(lambda x, step=step: jax.device_put(np.asarray(x) + step), params)
            checkpoints.save_async(step, trained, STEP, {})
    return folder


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Path:
    """The same to be damaged; the run still names the first one's `init`."""
    return shutil.copytree(made, tmp_path / "copy")


@pytest.fixture(scope="module")
def before(made: Path) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in flat(load(made / "init", dtype="float32")).items()}


def check(found: dict[str, jax.Array], before: dict[str, np.ndarray], added: int) -> None:
    assert found.keys() == before.keys()
    for name, value in found.items():
        np.testing.assert_array_equal(value, before[name] if name.startswith("vision/") else before[name] + added)


@pytest.mark.parametrize(("where", "step"), [("workdir", 2), ("workdir/checkpoints", 2), ("workdir/checkpoints/1", 1)])
def test_as_a_model(made: Path, where: str, step: int, before: dict[str, np.ndarray]) -> None:
    check(flat(load(made / where, dtype="float32")), before, step)
    source = open_source(made / where)
    assert source.dtype == "float32"
    assert source.facts["fresh"] == []  # what was made up is trained now


def test_with_another_sparse_layer_onto_a_mesh(made: Path, before: dict[str, np.ndarray]) -> None:
    other = dataclasses.replace(CONFIG, sparsity=dataclasses.replace(CONFIG.sparsity, sparse_layer=3))
    mesh = make_mesh("fsdp=4,tensor=2")
    found = flat(load(made / "workdir", other, sharding=lambda model: param_shardings(model, mesh, other)))
    stacks = [before[f"decoder/{stack}/mlp/up/kernel"] for stack in ("shallow", "deep")]
    np.testing.assert_array_equal(found["decoder/shallow/mlp/up/kernel"], np.concatenate(stacks)[:3] + 2)


def test_ready_to_be_asked(made: Path) -> None:
    assistant = dl.load(made / "workdir", buckets=tiny_buckets())
    assert assistant.config.sparsity.output_selector is not None
    assert assistant.tokenizer.decode(assistant.tokenizer.encode("a red cat", add_bos=False)) == "a red cat"


@pytest.mark.slow
def test_the_initial_checkpoint_is_gone(copy: Path, before: dict[str, np.ndarray]) -> None:
    """The run names the folder it was given, or the link beside it; both are tried."""
    run = copy / "workdir"
    with TrainingCheckpoints(run, CONFIG, init=copy / "init") as checkpoints:
        checkpoints.save_async(3, split(load(copy / "init", dtype="float32"))[0], STEP, {})
    (copy / "init").rename(copy / "elsewhere")
    with pytest.raises(InputError, match=r"the frozen ones \(vision\) come from .*copy/init, which is not there"):
        load(run)
    (run / "init").symlink_to(copy / "elsewhere")
    check(flat(load(run, dtype="float32")), before, 0)
    (run / "init").unlink()
    store.write(run / "init", CONFIG, random_leaves("float32"))
    with pytest.raises(InputError, match=r"workdir/init is not the checkpoint that .* was trained from"):
        load(run)


def test_frozen_parameters_inside(made: Path, tmp_path: Path, before: dict[str, np.ndarray]) -> None:
    params, frozen = split(load(made / "init", dtype="float32"))
    with TrainingCheckpoints(tmp_path, CONFIG, init=made / "init", made=FROZEN) as checkpoints:
        checkpoints.save_async(1, params, STEP, {}, frozen=frozen)
    shutil.rmtree(tmp_path / "checkpoints" / "1" / "state")  # not needed for a model
    check(flat(load(tmp_path)), before, 0)


@pytest.mark.slow
def test_what_the_initial_checkpoint_lacks_is_kept(made: Path, tmp_path: Path, before: dict[str, np.ndarray]) -> None:
    """Frozen predictors that were made from a seed are nowhere else."""
    lacking = [(name, leaf) for name, leaf in random_leaves() if not name.startswith("image_predictor/")]
    store.write(tmp_path / "init", CONFIG, lacking)
    whole = {name: jax.device_put(value) for name, value in before.items()}
    params = {name: value for name, value in whole.items() if name.startswith("decoder/")}
    frozen = {name: value for name, value in whole.items() if name not in params}
    with TrainingCheckpoints(tmp_path / "run", CONFIG, init=tmp_path / "init") as checkpoints:
        checkpoints.save_async(1, params, STEP, {}, frozen=frozen)
        found = checkpoints.restore(1, params, STEP, frozen)
    assert found.frozen.keys() == {name for name in frozen if name.startswith("image_predictor/")}
    assert flat(load(tmp_path / "run")).keys() == whole.keys()


def test_neither_inside_nor_recorded(made: Path, tmp_path: Path) -> None:
    with TrainingCheckpoints(tmp_path, CONFIG) as checkpoints:
        checkpoints.save_async(1, split(load(made / "init", dtype="float32"))[0], STEP, {})
    with pytest.raises(InputError, match="lacks the parameters of vision and names no checkpoint"):
        load(tmp_path)


def test_damage_is_named(copy: Path, monkeypatch: pytest.MonkeyPatch, before: dict[str, np.ndarray]) -> None:
    kernel = np.asarray(before["decoder/deep/mlp/up/kernel"] + 2)[1, 3].tobytes()
    params = copy / "workdir" / "checkpoints" / "2" / "params"
    (file,) = (path for path in params.rglob("*") if path.is_file() and kernel in path.read_bytes())
    content = bytearray(file.read_bytes())
    content[content.index(kernel) + 9] ^= 1
    file.write_bytes(content)
    if file.stat().st_size <= 1 << 20:
        with pytest.raises(InputError, match=f"{file.name} is damaged"):
            load(copy / "workdir")
    monkeypatch.setattr(trained_files, "_check_file", lambda path, digest: None)
    with pytest.raises(InputError, match=r"2/params is damaged: decoder/deep/mlp/up/kernel differ .*/1 instead\.$"):
        load(copy / "workdir")
    check(flat(load(copy / "workdir" / "checkpoints" / "1", dtype="float32")), before, 1)


def test_a_changed_tokenizer_is_named(copy: Path) -> None:
    name = copy / "workdir" / "files" / "tokenizer_config.json"
    name.write_text(name.read_text().replace("</s>", "<s>"))
    with pytest.raises(InputError, match=r"files/tokenizer_config\.json is damaged"):
        dl.load(copy / "workdir")


def test_nothing_whole_yet(tmp_path: Path) -> None:
    TrainingCheckpoints(tmp_path, CONFIG)
    (tmp_path / "checkpoints" / "7").mkdir()
    with pytest.raises(InputError, match="a work folder in which no checkpoint is whole yet"):
        load(tmp_path)


@pytest.mark.slow
def test_a_run_that_starts_from_another_run(made: Path, tmp_path: Path, before: dict[str, np.ndarray]) -> None:
    with TrainingCheckpoints(tmp_path, CONFIG, init=made / "workdir") as checkpoints:
        params: Any = {"decoder": split(load(made / "workdir"))[0]["decoder"]}
        checkpoints.save_async(1, params, STEP, {})
    check(flat(load(tmp_path)), before, 2)
    assert (tmp_path / "files" / "tokenizer.model").read_bytes() == (made / "tokenizer.model").read_bytes()
