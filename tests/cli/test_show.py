"""`dynllava show`: the pictures that it writes, and what it refuses."""

import json
from pathlib import Path

import pytest
from PIL import Image

from dynllava_jax.cli.main import main
from tests.checkpoint.buckets import simulate


def test_kept_writes_a_picture(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "kept.png"
    asked = ["--image", "sample:cat", "--question", "What?", "--max-new-tokens", "5"]
    assert main(["show", "kept", "--model", str(checkpoint), *asked, "--out", str(file)]) == 0
    assert capsys.readouterr().out == f"{file}\n"
    with Image.open(file) as picture:
        assert picture.width > 1000


def test_curves_lie_in_the_work_folder(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "ce": 2.0}) + "\n")
    assert main(["show", "curves", str(tmp_path)]) == 0
    assert "<svg" in (tmp_path / "curves.svg").read_text()


def test_curves_of_a_bucket_lie_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(tmp_path, monkeypatch)
    (tmp_path / "bucket" / "run").mkdir(parents=True)
    (tmp_path / "bucket" / "run" / "metrics.jsonl").write_text(json.dumps({"step": 1, "ce": 2.0}) + "\n")
    monkeypatch.chdir(tmp_path)
    assert main(["show", "curves", "gs://bucket/run"]) == 0
    assert "<svg" in (tmp_path / "curves.svg").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["kept", "--out", "kept.svg"], "--out kept.svg must end in one of .png, .jpg, .jpeg, .webp."),
        (["kept", "--out", "nowhere/kept.png"], "--out nowhere/kept.png cannot be written: there is no such folder."),
        (["kept", "--image", "sample:cat"], "--question is missing"),
        (["curves", "nowhere"], "nowhere/metrics.jsonl cannot be read"),
        ([], "WHAT"),
    ],
)
def test_bad_input_is_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
