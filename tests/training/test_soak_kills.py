"""The kill soak of `tools/soak_kills.py` in short: a real run, killed twice, ends as if nobody had touched it."""

from pathlib import Path

import pytest

from tools.soak_kills import soak


@pytest.mark.slow
def test_a_run_that_is_killed_twice_ends_bit_identical(tmp_path: Path) -> None:
    assert soak(tmp_path, kills=2, steps=16)
