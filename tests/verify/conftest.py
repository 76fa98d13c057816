"""The goldens' checkpoint, converted once for all tests."""

from typing import TYPE_CHECKING

import pytest

from tests.golden_files import ROOT

if TYPE_CHECKING:  # the package is imported inside the fixture, after the shape checker is in place
    from dynllava_jax.verify.subject import Subject


@pytest.fixture(scope="session")
def subject() -> "Subject":
    from dynllava_jax.verify.cases import read_recording
    from dynllava_jax.verify.subject import Subject

    return Subject.convert(read_recording(ROOT))
