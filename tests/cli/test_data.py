"""`dynllava data pack` and `dynllava data check` as commands."""

import json
import shutil
from pathlib import Path

import pytest

from dynllava_jax.cli.main import main
from dynllava_jax.testing import synthetic_image
from tests.checkpoint.buckets import simulate


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three good samples and one whose picture is missing."""
    synthetic_image().save(tmp_path / "1.png")
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A red car."}]
    samples = [{"id": str(number), "image": "1.png", "conversations": turns} for number in range(3)]
    samples.append(samples[0] | {"id": "gone", "image": "2.png"})
    (tmp_path / "data.json").write_text(json.dumps(samples))
    return tmp_path / "data.json"


def run(*words: str | int | Path) -> int:
    return main(["data", *map(str, words), "--workers", "0"])


def test_pack_and_check(data: Path, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", data) == 1
    said = capsys.readouterr().out
    assert "4 samples, 4 with an image, 0 without" in said
    assert "bad: 1 missing image: gone (" in said
    assert said.endswith("1 samples cannot be used\n")

    assert run("pack", data, tmp_path / "packed", "--short-side", 32) == 0
    said = capsys.readouterr().out
    assert "packed: 3 samples with 3 pictures in 1 shards" in said
    assert "left out 1 of 4: 1 missing image (gone)" in said
    assert run("pack", data, tmp_path / "packed", "--short-side", 32) == 0
    capsys.readouterr()

    assert run("check", tmp_path / "packed", "--model", checkpoint, "--max-length", 60) == 0
    said = capsys.readouterr().out
    assert "1 more were bad when the shards were packed (missing image)" in said
    assert "3 are longer than --max-length and are cut" in said
    assert "every sample can be used" in said


def test_a_damaged_shard_is_the_last_word_where_every_sample_is_good(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("pack", data, tmp_path / "packed") == 0
    (shard,) = (tmp_path / "packed").glob("*.arrayrecord")
    content = bytearray(shard.read_bytes())
    content[-5] ^= 1
    shard.write_bytes(content)
    capsys.readouterr()
    assert run("check", tmp_path / "packed") == 1
    assert capsys.readouterr().out.endswith("1 shards are not what was packed\n")


def test_json_stands_alone_on_stdout(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", data, "--json", "--no-pictures") == 0
    assert json.loads(capsys.readouterr().out)["samples"] == 4
    assert run("pack", data, tmp_path / "packed", "--json") == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == {"missing image": ["gone"]}


def test_the_demo_model_and_another_template(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("check", data, "--model", "demo", "--conv-template", "plain", "--no-pictures") == 0
    assert "tokens        4 ▇" in capsys.readouterr().out


def test_a_model_on_a_bucket(
    data: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its address was taken for the path gs:/bucket/model."""
    simulate(tmp_path, monkeypatch)
    shutil.copytree(checkpoint, tmp_path / "bucket" / "model")
    assert run("check", data, "--model", "gs://bucket/model", "--no-pictures") == 0
    assert "the longest has" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("check", "none.json"), "none.json does not exist"),
        (("check", "{data}", "--max-length", "9"), "--max-length has no effect without --model"),
        (("check", "{data}", "--model", "none"), "none"),
        (("check", "{data}", "--workers", "-1"), "'-1' is no whole number from 0 on"),
        (("pack", "{data}", "{data}", "--short-side", "x"), "'x' is no whole number from 1 on"),
        (("pack", "{data}", "out", "--shard-mib", "+0"), "'+0' is no whole number from 1 on"),
        (("pack", "{data}", "{folder}", "--workers", "+2"), "is not empty"),
        (("pack", "{data}", "ftp://host/out"), "ftp://host/out: nothing is read at such addresses; give a path"),
        (("pack", "{data}", "{folder}"), "is not empty"),
        (("pack", "gs://b/x.json", "out"), "cannot be read from a bucket"),
    ],
)
def test_bad_input(data: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str) -> None:
    assert main(["data", *(word.format(data=data, folder=data.parent) for word in words)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("dynllava: error: ")
    assert says in line
