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
    from tests.training.runs import write_checkpoint

    return write_checkpoint(tmp_path_factory.mktemp("model") / "tiny", tokenizer_folder)


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
