"""Every format that was ever written still loads; others are refused by their number."""

import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx

from dynllava_jax.checkpoint import store, versions
from dynllava_jax.checkpoint.load import load
from dynllava_jax.checkpoint.source import open_source
from dynllava_jax.errors import InputError
from dynllava_jax.training.checkpoint import TrainingCheckpoints
from tests.checkpoint import formats


@pytest.mark.parametrize("path", sorted(formats.FOLDER.glob("model_v*")), ids=lambda path: path.name)
def test_a_model_checkpoint(path: Path) -> None:
    info = store.read_info(path)
    assert info.config == formats.CONFIG
    found = {name: leaf for item in store.read_items(path, info) for name, leaf in item.items()}
    wanted = formats.leaves()
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], leaf) for name, leaf in wanted.items())
    load(path)


@pytest.mark.parametrize("path", sorted(formats.FOLDER.glob("training_v*")), ids=lambda path: path.name)
def test_a_training_checkpoint(path: Path, tmp_path: Path) -> None:
    """It is answered with and gone on with."""
    source = open_source(path)
    assert source.config == formats.CONFIG
    found = {name: leaf for part in source.read(source.shapes.keys()) for name, leaf in part.items()}
    wanted = formats.leaves()
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[name], leaf) for name, leaf in wanted.items())
    like = nnx.from_flat_state(
        [(tuple(name.split("/")), nnx.Param(np.zeros_like(x))) for name, x in formats.parameters().items()]
    )
    shutil.copytree(path, tmp_path / "run")
    with TrainingCheckpoints(tmp_path / "run", formats.CONFIG) as checkpoints:
        assert checkpoints.steps() == (formats.STEP,)
        restored = checkpoints.restore(None, jax.device_put(like), {"count": jax.numpy.int32(0)})
    assert (restored.info.step, restored.info.data) == (formats.STEP, {"data": "da7a"})
    assert int(restored.rest["count"]) == formats.STEP
    kept = {"/".join(map(str, name)): param.get_value() for name, param in nnx.to_flat_state(restored.params)}
    assert all(np.array_equal(kept[name], x) for name, x in formats.parameters().items())


def test_there_is_a_fixture_of_each() -> None:
    names = {f"model_v{number}" for number in (*versions.MODEL, versions.MODEL_VERSION)}
    names |= {f"training_v{number}" for number in (*versions.TRAINING, versions.TRAINING_VERSION)}
    assert {path.name for path in formats.FOLDER.iterdir()} == names
    assert set(versions.MODEL) == set(range(1, versions.MODEL_VERSION))
    assert set(versions.TRAINING) == set(range(1, versions.TRAINING_VERSION))


@pytest.mark.parametrize("number", [0, 9, None, "1", True])
def test_others_are_refused(number: object) -> None:
    with pytest.raises(InputError, match=rf"x has format_version {number!r}; this dynllava_jax reads 1, 2\."):
        versions.migrated({"format_version": number}, "x", 2, {1: lambda document: document})
