"""`docs/plan.md` and the tool that makes it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from dynllava_jax.checkpoint.leaves import leaf_shapes
from dynllava_jax.cli import main
from dynllava_jax.config.presets import get_preset
from tools import plan_table

DOCS = plan_table.ROOT / "docs"


def test_the_document_is_what_its_rows_say() -> None:
    assert (DOCS / "plan.md").read_text() == plan_table.page(DOCS / "plan")


@pytest.mark.parametrize("size", ["7b", "13b", "34b", "70b"])
def test_predictors_that_a_dense_plan_leaves_out_are_as_small_as_it_says(size: str) -> None:
    shapes = leaf_shapes(get_preset(f"dynamic_llava_{size}"))
    left_out = sum(math.prod(shape) for name, shape in shapes.items() if "predictor" in name)
    assert 0 < 2 * left_out <= 0.03 * 2**30
    assert "that has them holds theirs too, 0.03 GiB at most" in (DOCS / "plan.md").read_text()


def test_every_row_is_a_command_with_a_file_of_its_own() -> None:
    made = {row.name: row for row in plan_table.rows()}
    assert len(made) == len({row.words for row in made.values()})
    for row in made.values():
        assert main._parse(list(row.words[1:])).command == "plan"
    assert {file.stem for file in (DOCS / "plan").glob("*.json")} <= set(made)


def report(program: str, total: int, **more: Any) -> dict[str, Any]:
    """What `dynllava plan` says of a program that needs `total` GiB, of 70."""
    return {
        "program": program,
        "fits": total <= 70,
        "bytes_per_device": {"total": total << 30},
        "roofline": {"seconds": 0.02},
        "compile_seconds": 30.2,
        "compile_cpu_seconds": 21.0,
        **more,
    }


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows of one shape for which dense does not fit, and one that the compiler found too large."""
    cache = {"state_per_device": {"weights": 13 << 30, "cache": 47 << 30}}
    for kind, reports in {
        "dense": [report("prefill", 99), {"program": "decode", "fits": False, "problem": "RESOURCE_EXHAUSTED"}],
        "dynamic": [report("prefill", 50), report("decode", 63, **cache), report("decode_all_kept", 99)],
    }.items():
        row = {"command": [], "jax": "1.2", "problem": None, "reports": reports}
        (tmp_path / f"generation_7B-64-of-2K-{kind}_a100-1x1.json").write_text(json.dumps(row))
    refused = {"command": [], "jax": "1.2", "problem": "the mesh does not divide", "reports": []}
    (tmp_path / "training_7B_v5e-64.json").write_text(json.dumps(refused))
    return tmp_path


def test_rows_become_lines(folder: Path) -> None:
    lines = plan_table.page(folder).splitlines()
    (answers,) = [line for line in lines if line.startswith("| 7B | 64 of 2K | a100:1x1 |")]
    assert answers == (
        "| 7B | 64 of 2K | a100:1x1 | 73.6 | – | too much | 47.0 | 63.0 | 99.0 (too much) | **dynamic only** | "
        "– / 20.0 | 30 / 21; 30 / 21 | –; 30 / 21 |"
    )
    assert any(line.startswith("| 7B | v5e-64 | the mesh does not divide |") for line in lines)
    assert any(line.startswith("| 13B | v5e-64 | not run |") for line in lines)


def step(batch: int, seconds: float, **more: Any) -> dict[str, Any]:
    """An optimizer step on eight A100, without what rows made by earlier versions lack."""
    return {
        "program": "step",
        "mesh": {"data": 1, "fsdp": 8, "tensor": 1},
        "global_batch": batch,
        "sequence_length": 2048,
        "flops_per_step": 5.65e15,
        "state_per_device": {"parameters": 3 << 30, "moments": 6 << 30, "frozen": 1 << 30, "batch": 11_000_000},
        "checkpoint_bytes": 75 << 30,
        "host_bytes_while_saving": 76 << 30,
        "host_bytes_per_step": 88_000_000,
        "fits": True,
        "bytes_per_device": {"temporaries": 15 << 30, "total": 25 << 30, "limit": 73 << 30},
        "collectives": [{"sent": 34 << 30}],
        "roofline": {"seconds": seconds, "bound": "compute"},
        "compile_seconds": 99.0,
        "cost": {"samples": 656_000, "mfu": 0.4, "steps": 10_250, "hours": 16.1, "chip_hours": 128.8},
        **more,
    }


def write(folder: Path, name: str, *reports: dict[str, Any]) -> None:
    row = {"command": [], "jax": "1.2", "problem": None, "reports": reports}
    (folder / f"{name}.json").write_text(json.dumps(row))


def test_a_step_of_an_earlier_version_is_a_line(tmp_path: Path) -> None:
    write(tmp_path, "training_7B_a100-1x8", step(64, 2.26))
    write(tmp_path, "training_7B_h100-1x8", step(256, 8.0, activations_per_device=6 << 30))
    lines = plan_table.page(tmp_path).splitlines()
    first, second, needs, bounded = (line for line in lines if line.startswith(("| 7B | a100:1x8", "| 7B | h100:1x8")))
    assert first.startswith("| 7B | a100:1x8 | fsdp=8 | 8 | 25.0 | 73.0 | yes | 3.0 / 6.0 / 15.0 | 2.26 s | compute |")
    assert second.startswith("| 7B | h100:1x8 | fsdp=8 | 32 (off-recipe: batch 256) |")
    assert "| 3.0 / 6.0 / 15.0 (6.0) | 8.00 s |" in second
    # 88 MB in 2.26 s, or in 16.1 hours / 10250 steps.
    assert needs == ("| 7B | a100:1x8 | 5.65 / 7.18 | 75.0 | 76.0 | 88 | 39 / 16 | 6.4 / 16.1 | 129 |")
    assert "| 11 / 16 | 22.8 / 16.1 |" in bounded  # the network lets no run reach 40 %


def test_a_step_that_the_compiler_found_too_large_still_costs(tmp_path: Path) -> None:
    report = step(64, 1.0, fits=False, problem="RESOURCE_EXHAUSTED")
    for name in ("roofline", "bytes_per_device", "collectives", "compile_seconds"):
        del report[name]
    write(tmp_path, "training_7B_a100-1x8", report)
    lines = [line for line in plan_table.page(tmp_path).splitlines() if line.startswith("| 7B | a100:1x8")]
    assert lines[0].startswith("| 7B | a100:1x8 | fsdp=8 | 8 | RESOURCE_EXHAUSTED |")
    assert "| 88 | – / 16 | – / 16.1 | 129 |" in lines[1]


@pytest.mark.parametrize(
    ("wall", "cpu", "kept"),
    [(30.0, None, True), (300.0, 100.0, True), (170.0, 200.0, True), (300.0, 200.0, False), (300.0, None, False)],
)
def test_the_page_tells_what_took_too_long_to_compile(
    wall: float, cpu: float | None, kept: bool, tmp_path: Path
) -> None:
    seconds = {"compile_seconds": wall} | ({} if cpu is None else {"compile_cpu_seconds": cpu})
    write(tmp_path, "training_7B_a100-1x8", step(64, 2.0) | seconds)
    write(tmp_path, "training_13B_a100-1x8", step(64, 2.0))
    found = plan_table.page(tmp_path)
    assert "The bound for each program is 3 minutes on two idle cores." in found
    above = f"; above it: 7B on a100:1x8, step (300 / {'–' if cpu is None else 200})."
    assert f"{1 + kept} of 2 programs keep it{'.' if kept else above}" in found


def test_only_what_is_missing_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(plan_table, "make", lambda row, folder: made.append(row.name))
    monkeypatch.setattr("sys.argv", ["plan_table.py", "--folder", str(folder), "--rows", "3"])
    assert plan_table.main() == 1
    assert made == ["training_7B_a100-1x8", "training_7B_h100-1x8", "training_13B_a100-1x8"]


def test_fewer_than_no_rows_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As a slice's end it made all but the last."""
    monkeypatch.setattr("sys.argv", ["plan_table.py", "--rows", "-1"])
    monkeypatch.setattr(plan_table, "make", lambda *_: pytest.fail("a row is made"))
    with pytest.raises(SystemExit):
        plan_table.main()
    assert "--rows must be 0 or more, not -1" in capsys.readouterr().err
