"""The largest batch, and the sweep over meshes: with plans that are made up, what counts is which are asked for."""

from collections.abc import Callable
from typing import Any

import jax
import pytest

from dynllava_jax.config.experiment import read_experiment
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.errors import InputError
from dynllava_jax.planning import request, search
from dynllava_jax.planning.machine import Machine, machine
from dynllava_jax.planning.request import Request, answer
from dynllava_jax.planning.table import lines, ranking

GIVEN = ("--config.data.source=unread", "--config.init.checkpoint=unread")
PAPER = read_experiment("configs/dynamic_llava_7b.py", GIVEN)
A100 = machine("a100:1x8")
MOST = 1 << 10

Plan = Callable[[TrainConfig, Machine, int], dict[str, Any]]


def silent(line: str) -> None:
    del line


def report(config: TrainConfig, fits: bool = True, seconds: float = 1.0) -> dict[str, Any]:
    """What the other parts of a report are made of."""
    return {
        "program": "step",
        "topology": "a100:1x8",
        "mesh": {"fsdp": 8},
        "remat": config.remat,
        "global_batch": config.global_batch_size,
        "sequence_length": 2048,
        "flops_per_step": 1e15,
        "host_bytes_per_step": 10**8,
        "roofline": {"seconds": seconds, "bound": "compute", "compute": seconds, "memory": 0.1, "network": 0.2},
        "fits": fits,
    }


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> Callable[[Plan], None]:
    """Takes what plans a step; there are eight devices."""
    monkeypatch.setattr(search.aot, "topology", lambda name: jax.devices())

    def use(plan: Plan) -> None:
        monkeypatch.setattr(search, "plan_step", plan)
        monkeypatch.setattr(request, "plan_step", plan)

    return use


@pytest.mark.parametrize("most", [0, 1, 5, 8, MOST, MOST + 100])
def test_the_largest_batch_is_found(most: int, planned: Callable[[Plan], None]) -> None:
    asked: list[int] = []

    def plan(config: TrainConfig, where: Machine, images: int) -> dict[str, Any]:
        assert (where, images, config.device_batch_size) == (A100, 2, None)
        asked.append(config.global_batch_size // 8)
        return report(config, fits=config.global_batch_size <= 8 * most)

    planned(plan)
    found = search.largest_batch(PAPER, A100, 2, silent)
    assert found["global_batch"] == 8 * max(1, min(most, MOST))
    assert found["fits"] == (most > 0)
    assert len(asked) == len(set(asked)) <= 2 + 2 * max(most, 1).bit_length()
    assert max(asked) <= MOST


@pytest.mark.parametrize(
    ("name", "meshes"),
    [
        (
            "a100:4x8",
            [
                "fsdp=32",
                "data=4,fsdp=8",
                "fsdp=16,tensor=2",
                "data=4,fsdp=4,tensor=2",
                "fsdp=8,tensor=4",
                "data=4,fsdp=2,tensor=4",
                "fsdp=4,tensor=8",
            ],
        ),
        ("v5e-64", ["fsdp=64", "fsdp=32,tensor=2", "fsdp=16,tensor=4"]),  # a host has four
        ("a100:1x1", ["fsdp=1"]),
    ],
)
def test_each_machine_has_its_meshes(name: str, meshes: list[str]) -> None:
    assert list(search.meshes(PAPER, machine(name))) == meshes


def test_a_sweep_ranks_what_fits_by_time_and_then_by_what_is_computed_twice(planned: Callable[[Plan], None]) -> None:
    seconds = {"fsdp=8": 2.0, "fsdp=4,tensor=2": 1.0, "fsdp=1,tensor=8": 0.5}

    def plan(config: TrainConfig, where: Machine, images: int) -> dict[str, Any]:
        del where, images
        if config.mesh not in seconds:
            raise InputError("it does not divide")
        return report(config, config.remat != "none", seconds[config.mesh]) | {"mesh": config.mesh}

    planned(plan)
    found = search.sweep(PAPER, A100, 1, silent)
    assert [(each["mesh"], each["remat"]) for each in found[:6]] == [
        ("fsdp=1,tensor=8", "dots"),
        ("fsdp=1,tensor=8", "full"),
        ("fsdp=4,tensor=2", "dots"),
        ("fsdp=4,tensor=2", "full"),
        ("fsdp=8", "dots"),
        ("fsdp=8", "full"),
    ]
    refused = [each for each in found if "problem" in each]
    assert {(each["mesh"], each["problem"]) for each in refused} == {("fsdp=2,tensor=4", "it does not divide")}
    assert len(refused) == 3
    assert not any(each["fits"] for each in found[6:])
    printed = list(ranking(found))
    assert len(printed) == 1 + len(found)
    assert all("does not fit" in line for line in printed[7:])


def test_a_sweep_stops_where_there_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise InputError(f"Compiling for {name} needs a compiler")

    monkeypatch.setattr(search.aot, "topology", missing)
    with pytest.raises(InputError, match="needs a compiler"):
        search.sweep(PAPER, A100, 1, silent)


def test_another_batch_than_the_recipes_is_marked(planned: Callable[[Plan], None]) -> None:
    planned(lambda config, where, images: report(config, config.global_batch_size <= 8 * 16))
    (largest,) = answer(Request(PAPER, "a100:1x8", largest=True), silent)
    assert (largest["global_batch"], largest["recipe_global_batch"], largest["off_recipe"]) == (128, 64, True)
    assert "128 samples (off-recipe: the recipe has 64) of 2048 tokens" in next(iter(lines(largest)))
    (own,) = answer(Request(PAPER, "a100:1x8"), silent)
    assert not own["off_recipe"]
    assert "off-recipe" not in "\n".join(lines(own))
    (given,) = answer(Request(PAPER, "a100:1x8", recipe_batch=256), silent)
    assert given["off_recipe"]
    assert all(line.endswith("off-recipe batch") for line in list(ranking([given]))[1:])
