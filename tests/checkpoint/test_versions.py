"""Every format that was ever written still loads; others are refused by their number."""

from pathlib import Path

import numpy as np
import pytest

from dynllava_jax.checkpoint import store, versions
from dynllava_jax.checkpoint.load import load
from dynllava_jax.errors import InputError
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


def test_there_is_a_fixture_of_each() -> None:
    names = {f"model_v{number}" for number in (*versions.MODEL, versions.MODEL_VERSION)}
    assert {path.name for path in formats.FOLDER.iterdir()} == names
    assert set(versions.MODEL) == set(range(1, versions.MODEL_VERSION))
    assert set(versions.TRAINING) == set(range(1, versions.TRAINING_VERSION))


@pytest.mark.parametrize("number", [0, 9, None, "1", True])
def test_others_are_refused(number: object) -> None:
    with pytest.raises(InputError, match=rf"x has format_version {number}; this dynllava_jax reads 1, 2\."):
        versions.migrated({"format_version": number}, "x", 2, {1: lambda document: document})
