"""`dynllava plan` for machines that are not here."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import pytest

from dynllava_jax.analysis.prompt_flops import Selection, cache_bytes
from dynllava_jax.checkpoint.leaves import abstract_model
from dynllava_jax.cli.main import main
from dynllava_jax.config.experiment import read_experiment
from dynllava_jax.inference.buckets import Shape
from dynllava_jax.planning import table
from dynllava_jax.planning.machine import machine
from dynllava_jax.planning.programs import expected_growth
from dynllava_jax.training.setup import preset_model

CONFIG = "configs/tiny.py"
needs_compilers = [
    pytest.mark.aot,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs the aot extra"),
]


def plan(tmp_path: Path, *more: str, status: int = 0) -> list[dict[str, Any]]:
    file = tmp_path / "plan.json"
    shapes = ("--config.data.max_length=128", "--config.global_batch_size=16")
    assert main(["plan", f"--config={CONFIG}", *shapes, *more, f"--json={file}"]) == status
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("topology", [pytest.param("v5e:2x2", marks=needs_compilers)])
def test_a_step_is_told_of(topology: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (report,) = plan(tmp_path, f"--topology={topology}", "--mesh=fsdp=-1", "--samples=1000", "--mfu=0.5")
    assert report["fits"]
    size = report["bytes_per_device"]
    assert size["total"] == size["arguments"] + size["temporaries"] + size["output"]
    assert size["limit"] == int(0.92 * 16 * 2**30)
    held = report["state_per_device"]
    assert held["moments"] == 2 * held["parameters"]
    assert size["arguments"] >= sum(held.values()) * 0.99
    assert report["mesh"] == {"data": 1, "fsdp": 4, "tensor": 1}
    assert (report["global_batch"], report["sequence_length"], report["remat"]) == (16, 128, "none")
    assert (report["recipe_global_batch"], report["off_recipe"]) == (8, True)
    assert report["activations_per_device"] > 0
    assert report["flops_by_convention"]["exact"] == report["flops_per_step"] < report["flops_by_convention"]["eq13"]
    rates, step_seconds = report["host_bytes_per_second"], report["cost"]["hours"] * 3600 / 63
    assert rates["mfu"] == 0.5
    assert rates["at_mfu"] == pytest.approx(report["host_bytes_per_step"] / step_seconds)
    assert rates["at_roofline"] == pytest.approx(report["host_bytes_per_step"] / report["roofline"]["seconds"])
    assert {each["kind"] for each in report["collectives"]} & {"all-gather", "all-reduce"}
    assert report["cost"]["steps"] == 63
    assert report["cost"]["chip_hours"] == pytest.approx(4 * report["cost"]["hours"])
    printed = capsys.readouterr().out
    assert "fits" in printed
    assert "63 steps" in printed
    assert "16 samples (off-recipe: the recipe has 8) of 128 tokens" in printed
    assert "exact" in printed
    assert "eq. 13" in printed
    assert "activations kept" in printed


@pytest.mark.parametrize(
    ("topology", "devices", "memory"),
    [
        pytest.param("v4-8", 4, 32 * 2**30, marks=needs_compilers),
        pytest.param("a100-40:2x8", 16, 40 * 2**30, marks=needs_compilers),
        pytest.param("h100:2x8", 16, 84_929_347_584, marks=needs_compilers),
        pytest.param("h200:1x1", 1, 150_109_880_320, marks=needs_compilers),
    ],
)
def test_a_step_compiles_for_every_kind(topology: str, devices: int, memory: int, tmp_path: Path) -> None:
    (report,) = plan(tmp_path, f"--topology={topology}", "--mesh=fsdp=-1")
    assert report["fits"]
    assert report["mesh"] == {"data": 1, "fsdp": devices, "tensor": 1}
    assert report["bytes_per_device"]["limit"] == int(0.92 * memory)
    assert bool(report["collectives"]) == (devices > 1)
    across = sum(each["across_hosts"] for each in report["collectives"])
    assert across <= sum(each["sent"] for each in report["collectives"])
    assert (across > 0) == ("2x8" in topology)
    assert report["roofline"]["seconds"] >= report["roofline"]["network"]


@pytest.mark.parametrize("topology", [pytest.param("a100:1x1", marks=needs_compilers)])
def test_answers_are_told_of(topology: str, tmp_path: Path) -> None:
    reports = plan(tmp_path, f"--topology={topology}", "--mesh=data=1", "--generate=2,64,32")
    assert [report["program"] for report in reports] == ["prefill", "decode"]
    assert all(report["fits"] for report in reports)
    made, held = (report["state_per_device"] for report in reports)
    assert 0 < made["cache"] <= reports[0]["bytes_per_device"]["output"]
    assert 0 < held["cache"] < held["weights"] == made["weights"]
    assert reports[1]["bytes_per_device"]["arguments"] >= sum(held.values())
    assert reports[1]["compile_cpu_seconds"] > 0


@pytest.mark.parametrize("topology", [pytest.param("a100:1x1", marks=needs_compilers)])
def test_a_token_is_bound_by_what_it_has_to_read(topology: str, tmp_path: Path) -> None:
    """No row of the embeddings but its own, and of the deep cache what it holds: it has more room than that."""
    reports = plan(tmp_path, f"--topology={topology}", "--mesh=data=1", "--generate=2,64,700")
    model = preset_model(read_experiment(CONFIG))
    decoder, sparsity = abstract_model(model).decoder, model.sparsity
    weights = [decoder.shallow, decoder.deep, decoder.final_norm, decoder.head, abstract_model(model).output_predictor]
    parameters = sum(leaf.size for leaf in jax.tree.leaves(weights))
    whole, kept = 64, 64 - model.image_tokens + model.kept_image_tokens
    for report, rate in zip(reports[1:], (sparsity.output_keep_rate, 1.0), strict=True):
        seen = Selection(sparsity.sparse_layer, whole, kept, rate)
        read = 2 * parameters + 2 * cache_bytes(model.decoder, seen, 0, 700)
        assert report["roofline"]["memory"] * machine(topology).chip.bandwidth == pytest.approx(read, rel=0.005)
        assert report["state_per_device"]["cache"] >= 2 * cache_bytes(model.decoder, seen, 0, 700)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--topology=v5z:2x2",), "Topology 'v5z:2x2' is unknown: the nearest are"),
        (("--topology=v5e:2x2", "--mfu=2"), "--mfu 2.0 must be above 0 and at most 1"),
        (("--topology=v5e:2x2", "--generate=8,x"), "--generate 8,x is not ROWS,PROMPT,ANSWER"),
        (("--topology=v5e:2x2", "--generate=8,4,2"), "a prompt has 1 x 16 image tokens at least"),
        (("--topology=v5e:2x2", "--config.model=None"), "the config names no preset"),
        (("--topology=v5e:7x9",), "is no slice that is sold; the nearest are v5e:8x8, v5e:4x8, v5e:8x16"),
        (("--topology=v5e:2x2", "--generate=8,64,2", "--largest-batch"), "--generate does not go with --largest-batch"),
        (("--topology=v5e:2x2", "--generate=8,64,2", "--sweep"), "--generate does not go with --sweep"),
        (("--topology=v5e:2x2", "--generate=8,64,2", "--samples=9"), "--generate does not go with --samples"),
        (("--topology=v5e:2x2", "--generate=8,64,2", "--remat=full"), "--generate does not go with --remat"),
        (("--topology=v5e:2x2", "--generate=8,64,2", "--mfu=0.5"), "--generate does not go with --mfu"),
        (("--topology=v5e:2x2", "--sweep", "--largest-batch"), "--sweep does not go with --largest-batch"),
        (("--topology=v5e:2x2", "--sweep", "--mesh=fsdp=4"), "--sweep does not go with --mesh"),
        (("--topology=v5e:2x2", "--dense"), "--dense needs --generate"),
        (("--topology=v5e:2x2", "--samples=-1"), "--samples -1 must not be negative"),
        (("--topology=v5e:2x2", "--images=-1"), "--images -1 must not be negative"),
        (("--topology=v5e:2x2", "--picture=nowhere/a.svg"), "--picture nowhere/a.svg cannot be written: there is no"),
        (("--topology=v5e:2x2", "--picture=a.png"), "--picture a.png must end in one of .svg"),
    ],
)
def test_what_cannot_be_planned_is_said_in_a_line(
    more: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", f"--config={CONFIG}", *more]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(("rate", "answer"), [(0.5, 2048), (0.5, 4096), (1.0, 2048), (0.5, 20), (0.1, 300)])
def test_an_answer_is_planned_with_what_is_expected_to_stay(rate: float, answer: int) -> None:
    shape = Shape(rows=8, images=1, length=768, deep_length=307, answer=answer)
    sizes = shape.deep_capacities(rate)
    grown = expected_growth(shape, rate)
    assert sizes[grown] >= 307 + rate * answer
    assert grown == 0 or sizes[grown - 1] < 307 + rate * answer


def test_pictures_and_rankings_hold_every_mesh() -> None:
    size = {"arguments": 3 << 30, "temporaries": 4 << 30, "output": 0, "total": 7 << 30, "limit": 10 << 30}
    bounds = {"compute": 1.5, "memory": 0.1, "network": 0.2, "seconds": 1.5, "bound": "compute"}
    reports = [
        {
            "program": "step",
            "mesh": {"data": 1, "fsdp": 8, "tensor": 1},
            "remat": "full",
            "fits": True,
            "bytes_per_device": size,
            "roofline": bounds,
        },
        {"program": "step", "mesh": "fsdp=3", "remat": "none", "fits": False, "problem": "it does not divide"},
    ]
    drawn = table.picture(reports)
    assert drawn.startswith("<svg")
    assert "fsdp=8  full" in drawn
    ranked = list(table.ranking(reports))
    assert "7.00" in ranked[1]
    assert ranked[2].endswith("does not fit: it does not divide")
