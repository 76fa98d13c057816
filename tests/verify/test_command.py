"""`dynllava verify` as a command: exit status, files, bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from dynllava_jax.cli.main import main
from dynllava_jax.verify.cases import read_recording
from tests.golden_files import arrays
from tests.verify.recordings import change_arrays, change_json, part


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A recording with two small cases: one supported, one that nobody knows."""
    folder = part(tmp_path / "recording", "02_predictors", "12_optimizer_groups")
    for file in (folder / "cases").glob("12_*"):
        file.rename(file.with_stem("99_new"))
    return folder


def run(*words: str | Path) -> int:
    return main(["verify", "--cases", *map(str, words)])


def test_holding_cases_give_status_0_a_dump_and_a_json_file(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "verdict.json"
    assert run(folder, "--case", "02", "--dump", tmp_path / "dump", "--json", out) == 0
    verdict = json.loads(out.read_text())
    assert verdict["unsupported"] == []
    assert list(verdict["cases"]) == ["02_predictors"]
    assert [file.name for file in (tmp_path / "dump").iterdir()] == ["02_predictors.npz"]


def test_json_stands_alone_on_stdout(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder, "--case", "02_predictors", "--json") == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["cases"]["02_predictors"]["ok"] is True
    assert "1 of 1 cases hold" in printed.err


def test_an_unsupported_case_that_is_asked_for_gives_status_1(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(folder) == 1
    assert "not supported: 99_new" in capsys.readouterr().out


def test_a_number_that_does_not_hold_gives_status_1_and_names_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logits = arrays("02_predictors")["vision_logits_ones"]
    logits[0, 3, 1] += 1e-3
    change_arrays(folder / "cases" / "02_predictors.npz", vision_logits_ones=logits)
    assert run(folder, "--case", "02_predictors") == 1
    assert "FAIL  02_predictors: vision_logits_ones: error 1.00e-03" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--case", "5_prefill"), "holds no case '5_prefill'; did you mean"),
        (("--case", "02", "--platform", "tpu"), "--platform tpu: JAX finds no such device here"),
        (("--case", "02", "--json", "nowhere/x.json"), "there is no such folder"),
        (("--case", "02", "--dump", __file__), "--dump"),
    ],
)
def test_bad_options_give_status_2_before_any_work(
    folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    assert run(folder, *words) == 2
    out, err = capsys.readouterr()
    assert says in err
    assert (out, err.count("\n")) == ("", 1)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (None, "is no folder"),
        ("checkpoint", "has no folder checkpoint"),
        ("manifest.json", "manifest.json cannot be read: No such file"),
        ("cases/02_predictors.npz", "02_predictors.npz cannot be read as an .npz file"),
        ("cases/02_predictors.json", "02_predictors.npz has no 02_predictors.json beside it"),
    ],
)
def test_a_damaged_recording_gives_status_2(
    folder: Path, capsys: pytest.CaptureFixture[str], broken: str | None, says: str
) -> None:
    if broken is None:
        folder = folder / "missing"
    elif broken.endswith(".npz"):
        (folder / broken).write_bytes(b"no archive")
    elif (folder / broken).is_dir():
        shutil.rmtree(folder / broken)
    else:
        (folder / broken).unlink()
    assert run(folder, "--case", "02_predictors") == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("dynllava: error: ")
    assert says in error


def test_a_recording_without_cases_does_not_pass(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (folder / "cases").iterdir():
        if file.stem != "00_images":  # only inputs
            file.unlink()
    assert run(folder) == 2
    assert "holds no case: no JSON file there describes an output" in capsys.readouterr().err


def test_an_array_is_input_or_output(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "cases" / "02_predictors.json"
    described = json.loads(file.read_text())["arrays"]
    name = next(name for name, entry in described.items() if entry["role"] == "output")
    described[name]["role"] = "outputs"
    change_json(file, arrays=described)
    assert run(folder) == 2
    assert f"02_predictors.json: the role of {name} must be input or output, not 'outputs'" in capsys.readouterr().err


def test_a_tower_that_stood_elsewhere_when_it_was_recorded(folder: Path) -> None:
    change_json(folder / "checkpoint" / "config.json", mm_vision_tower="/elsewhere/tower")
    assert read_recording(folder).vision_tower == folder / "vision_tower"


def test_a_case_that_lacks_an_input_fails_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = {name: value for name, value in arrays("02_predictors").items() if name != "text_x"}
    np.savez(folder / "cases" / "02_predictors.npz", **kept)  # pyright: ignore[reportArgumentType]
    assert run(folder) == 1
    out = capsys.readouterr().out
    assert "FAIL  02_predictors: none of its 5 arrays was compared: stopped with KeyError: 'text_x'" in out
    assert out.count("KeyError") == 1
    assert "0 of 1 cases hold (0 arrays compared)" in out
