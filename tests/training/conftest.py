"""A model checkpoint with a tokenizer, data, and one trainer for many runs, for the tests that need them."""

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dynllava_jax.testing.tokenizer import write_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """Of the tiny model, every value drawn."""
    import numpy as np

    from dynllava_jax.checkpoint import store
    from dynllava_jax.checkpoint.leaves import item_of, leaf_shapes
    from dynllava_jax.config.presets import tiny

    draw = np.random.default_rng(0)
    shapes = sorted(leaf_shapes(tiny()).items(), key=lambda leaf: item_of(leaf[0]))
    leaves = ((name, 0.1 * draw.standard_normal(shape).astype(np.float32)) for name, shape in shapes)
    files = {file.name: file.read_bytes() for file in tokenizer_folder.iterdir()}
    folder = tmp_path_factory.mktemp("model") / "tiny"
    store.write(folder, tiny(), leaves, extras=store.Extras(files=files))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One for all runs of a file, since the trainer belongs to a config."""
    from tests.training.runs import write_data

    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def one_program() -> Iterator[None]:
    """The runs of a file are of one shape: one trainer, whose programs are traced once."""
    from dynllava_jax.training import loop
    from dynllava_jax.training.step import Trainer

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "Trainer", functools.cache(Trainer))
        yield
