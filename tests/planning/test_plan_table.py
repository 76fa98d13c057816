"""`docs/plan.md` and the tool that makes it."""

import json
from pathlib import Path
from typing import Any

import pytest

from dynllava_jax.cli import main
from tools import plan_table

DOCS = plan_table.ROOT / "docs"


def test_the_document_is_what_its_rows_say() -> None:
    assert (DOCS / "plan.md").read_text() == plan_table.page(DOCS / "plan")


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


def test_only_what_is_missing_is_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(plan_table, "make", lambda row, folder: made.append(row.name))
    monkeypatch.setattr("sys.argv", ["plan_table.py", "--folder", str(folder), "--rows", "3"])
    assert plan_table.main() == 1
    assert made == ["training_7B_a100-1x8", "training_7B_h100-1x8", "training_13B_a100-1x8"]
