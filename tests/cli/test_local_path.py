"""Paths in options: what a shell leaves alone in them, and what is none of this machine."""

import json
from pathlib import Path

import pytest

from dynllava_jax.cli.main import main


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text(json.dumps({"step": 1, "ce": 2.0}) + "\n")
    return tmp_path


def test_home(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", "curves", "~/run", "--out=~/picture.svg"]) == 0
    assert capsys.readouterr().out == f"{home}/picture.svg\n"
    assert main(["flops", "--json=~/flops.json"]) == 0
    assert (home / "flops.json").is_file()


def test_a_config_at_home(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("~", "~nobody_here"):
        assert main(["train", f"--config={name}/none.py", "--workdir=x"]) == 2
    first, second = capsys.readouterr().err.splitlines()
    assert f"{home}/none.py" in first
    assert "~nobody_here" in second


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["show", "curves", "run", "--out="], "argument --out: the path is empty; name something, or leave it out"),
        (
            ["show", "curves", "run", "--out=gs://bucket/x.svg"],
            "--out: gs://bucket/x.svg lies on a bucket; give a path",
        ),
        (["show", "curves", "run", "--out=~nobody_here/x.svg"], "--out: the path ~nobody_here/x.svg: nobody here is"),
        (["show", "curves", ""], "WORKDIR is empty; name something"),
        (["flops", "--json="], "--json: the path is empty"),
        (["generate", "--batch="], "--batch: the path is empty"),
    ],
)
def test_what_is_refused(argv: list[str], message: str, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert message in err
    assert err.count("\n") == 1
    assert [path.name for path in home.iterdir()] == ["run"]
