"""`dynllava train` before any training: what it would do, and what it refuses."""

import json
from pathlib import Path

import pytest

from dynllava_jax.cli.main import main
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.training import loop
from tests.training.runs import CONFIG, command, run, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    return err.splitlines()[-1]


def test_a_dry_run_says_everything(
    data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--dry-run", "--config.eval.every=5", "--config.eval.samples=4", "--config.device_batch_size=4")
    assert run(data, tmp_path, *more, checkpoint=checkpoint) == 0
    out = capsys.readouterr().out
    for words in (
        '"global_batch_size": 8',
        "mesh: data 1, fsdp 1, tensor 1; 4 samples a device at a time, 2 times a step",
        "20 of 24 samples",
        "4 without image; 4 held out",
        "plan: 2 steps in 1 shapes",
        "8 rows of",
        "'16 slots'",
        "answer*",
    ):
        assert words in out
    assert list(tmp_path.iterdir()) == []
    assert run(data, tmp_path, *more, "--json", checkpoint=checkpoint) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["steps"], found["samples"], found["held_out"], found["accumulation"]) == (2, 16, 4, 2)
    assert found["config"]["init"]["checkpoint"] == str(checkpoint)
    first = found["first_batch"]
    assert len(first["samples"]) == first["rows"] == 8
    assert all(sample["images"] == 1 for sample in first["samples"])


def test_the_work_folder_may_lie_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As data.source may: a shell leaves the ~ of --workdir=~/RUN alone."""
    folders: list[str] = []

    def train(config: TrainConfig, options: loop.Options) -> loop.Result:
        folders.append(options.workdir)
        return loop.Result(1, 1, {})

    monkeypatch.setattr(loop, "train", train)
    monkeypatch.setenv("HOME", str(tmp_path))
    for workdir in ("~/run", "~", "a/~", "gs://bucket/~"):
        assert main(["train", f"--config={CONFIG}", "--config.data.source=x", f"--workdir={workdir}"]) == 0
    assert folders == [f"{tmp_path}/run", str(tmp_path), "a/~", "gs://bucket/~"]
    line = refused(["train", f"--config={CONFIG}", "--config.data.source=x", "--workdir=~nobody_here/run"], capsys)
    assert "--workdir ~nobody_here/run: nobody here is called ~nobody_here; give another path." in line


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--config.optimzer.eps=1"], ["--config.optimzer is unknown; the nearest key is optimizer"]),
        (["--config.seed=x"], ["--config.seed must be int, not 'x'"]),
        (["--wrong"], ["unrecognized arguments: --wrong"]),
        (["stray"], ["unrecognized arguments: stray"]),
        (["--confg.seed=1"], ["unrecognized arguments"]),
        (["--resume=yes"], ["--resume", "force"]),
        (["--profile=3"], ["--profile 3 is not START:COUNT"]),
        (["--profile=0:3"], ["--profile 0:3 is not START:COUNT"]),
        (["--config.global_batch_size=12", "--config.mesh=data=8"], ["global_batch_size 12", "8 devices"]),
        (["--config.attention=cuda"], ["attention has no implementation 'cuda'; there are xla"]),
        (["--config.attention=triton"], ["attention: triton runs on a gpu only, and this is a cpu; name another"]),
        (["--config.device_batch_size=3"], ["device_batch_size 3"]),
        (["--config.mesh=data=64"], ["data=64", "8"]),
        (["--config.data.source=nowhere.json"], ["nowhere.json"]),
        (["--config.init.checkpoint=nowhere"], ["nowhere"]),
        (["--config.model=demo"], ["is no demo", "decoder.hidden_size 64"]),
        (["--config.data.max_length=4096"], ["max_length 4096", "512"]),
        (["--config.eval.every=1", "--config.eval.samples=99"], ["eval.samples 99"]),
    ],
)
def test_what_is_refused(
    more: list[str], words: list[str], data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(command(data, tmp_path / "work", *more, checkpoint=checkpoint), capsys)
    assert all(word in line for word in words), line
    assert list(tmp_path.iterdir()) == []


def test_config_and_work_folder_are_needed(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--config" in refused(["train", "--workdir=x"], capsys)
    for words in ([], ["--workdir="]):
        assert "--workdir is missing or empty" in refused(["train", f"--config={CONFIG}", *words], capsys)
    assert "nowhere.py cannot be read" in refused(["train", "--config=nowhere.py", "--workdir=x"], capsys)


def test_other_commands_take_no_config_keys(capsys: pytest.CaptureFixture[str]) -> None:
    assert "unrecognized arguments: --config.seed=1" in refused(["samples", "--config.seed=1"], capsys)
