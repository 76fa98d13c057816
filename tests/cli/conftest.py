"""A converted checkpoint for all tests of the command line."""

from pathlib import Path

import pytest

from tests.golden_files import ROOT


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from dynllava_jax.convert.from_torch import convert

    folder = tmp_path_factory.mktemp("converted") / "tiny"
    convert(ROOT / "checkpoint", folder)
    return folder
