"""A converted checkpoint for all tests of the command line, and one model for many commands."""

import functools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.golden_files import ROOT


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dynllava_jax.convert.from_torch import convert

    folder = tmp_path_factory.mktemp("converted") / "tiny"
    convert(ROOT / "checkpoint", folder)
    return folder


@pytest.fixture(scope="module")
def one_load() -> Iterator[None]:
    """Commands with the same model options share the loaded model, whose programs are compiled once."""
    from dynllava_jax.inference import load

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(load, "load", functools.cache(load.load))
        yield
