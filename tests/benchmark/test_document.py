"""docs/benchmarks.md names commands that there are; tests/cli/test_bench.py holds it to the keys that they write."""

import shlex

import pytest

from dynllava_jax.cli import main
from tests.benchmark import document
from tools.measure_accelerator import MEASUREMENTS


@pytest.mark.parametrize("command", document.commands())
def test_commands_exist(command: str) -> None:
    main._parse(shlex.split(command)[1:])


def test_what_the_aims_hang_on_is_measured_first() -> None:
    measured = [f"dynllava {one.words}" for one in MEASUREMENTS]
    aimed = {aim.command for aim in document.aims()}
    assert len(aimed) == 5
    assert set(measured[: len(aimed)]) == aimed
    assert set(measured) <= set(document.commands())


def test_the_search_itself() -> None:
    assert len(document.aims()) == 10
    assert "ratio_to_jax_cudnn.both" in document.keys("attention")
    assert {"prefill_time_over_flops", "share_of_roofline", "tower_seconds"} <= document.keys("generate")
    assert {"mfu", "share_of_matmul"} <= document.keys("train")
    assert all("matmul_tflops" in document.keys(kind) for kind in ("attention", "generate", "train"))
