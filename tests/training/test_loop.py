"""Whole runs of the command: begun, stopped, gone on with, refused, and ended by a bad loss."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from dynllava_jax.config.training import TrainConfig
from dynllava_jax.training import loop, processes
from dynllava_jax.training.stop import StopSignal
from dynllava_jax.training.watch import LossWatch
from tests.training.runs import records, run, saved, write_checkpoint, write_data

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_program")]

RUN = ("--config.steps=6", "--config.eval.every=3", "--config.eval.samples=4", "--config.log.health_every=2")
CLOCK = ("seconds", "tokens_per_second")


@pytest.fixture(scope="module")
def whole(data: Path, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without interruption."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    assert run(data, workdir, *RUN, "--config.checkpoint.every=4", checkpoint=checkpoint) == 0
    return workdir


def checksums(workdir: Path, step: int) -> Any:
    """Of every array of a checkpoint."""
    return json.loads((workdir / "checkpoints" / str(step) / "hashes.json").read_text())["content"]["items"]


def without_clock(workdir: Path) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in record.items() if name not in CLOCK and not name.startswith("time/")}
        for record in records(workdir)
    ]


def test_a_run_tells_of_every_step(whole: Path) -> None:
    found = records(whole)
    assert [record["step"] for record in found] == [1, 2, 3, 4, 5, 6]
    always = {"loss", "ce", "image_mask", "output_mask", "image_keep_rate", "output_keep_rate", "learning_rate", "tau"}
    always |= {"predictor_learning_rate", "grad_norm", "grad_norm/projector", "grad_norm/image_predictor", *CLOCK}
    assert all(always <= set(record) for record in found)
    assert [record["step"] for record in found if "eval/perplexity" in record] == [3, 4, 6]
    assert [record["step"] for record in found if "health/image_overlap" in record] == [2, 4, 6]
    assert all(0 < record["health/lowest_denominator"] <= 2 for record in found if "health/image_overlap" in record)
    assert all(record["skipped"] == 0.0 for record in found)
    assert found[0]["learning_rate"] == 0.0
    assert found[1]["tau"] == pytest.approx(0.1 ** (1 / 6))
    assert saved(whole) == [4, 6]
    assert json.loads((whole / "experiment.json").read_text())["steps"] == 6


def test_checkpoints_tell_what_other_processes_waited_for_data(
    data: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here another one waited longer than all that this one took for its steps."""
    monkeypatch.setattr(processes, "largest", lambda own: own + 1e6)
    more = ("--config.steps=4", "--config.eval.every=0", "--config.checkpoint.every=2", "--config.log.health_every=0")
    assert run(data, tmp_path, *more, checkpoint=checkpoint) == 0
    told = [record for record in records(tmp_path) if "time/data" in record]
    assert [record["step"] for record in told] == [2, 4]
    assert all(record["time/work"] < 0.1 * record["time/data"] for record in told)


def test_a_stopped_run_goes_on_to_the_same_bits(
    whole: Path, data: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    votes = iter([False, True])
    with monkeypatch.context() as patch:
        patch.setattr(StopSignal, "agreed", lambda self: next(votes))
        assert run(data, tmp_path, *RUN, checkpoint=checkpoint) == 75
    assert saved(tmp_path) == [2]
    assert run(data, tmp_path, *RUN, checkpoint=checkpoint) == 0
    assert without_clock(tmp_path)[-1] == without_clock(whole)[-1]
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert [record["loss"] for record in records(tmp_path)] == [record["loss"] for record in records(whole)]
    assert checksums(tmp_path, 6) == checksums(whole, 6)


def test_a_finished_run_is_left_alone(
    whole: Path, data: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (whole / "metrics.jsonl").read_bytes()
    assert run(data, whole, *RUN, "--json", checkpoint=checkpoint) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == {"step": 6, "steps": 6, "finished": True}
    assert "all 6 steps are done" in err
    assert (whole / "metrics.jsonl").read_bytes() == before


def test_another_run_is_refused_until_it_is_forced(
    whole: Path, data: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = (*RUN, "--config.optimizer.clip_norm=2.0")
    assert run(data, whole, *changed, checkpoint=checkpoint) == 2
    assert "holds another run: optimizer.clip_norm was 1.0 and is 2.0. Undo that" in capsys.readouterr().err
    assert run(data, whole, *changed, "--resume=force", checkpoint=checkpoint) == 0
    assert "forced: optimizer.clip_norm was 1.0 and is 2.0" in capsys.readouterr().err


def test_a_forced_run_that_is_shorter_than_what_was_done_is_refused(
    whole: Path, data: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, whole, *RUN, "--config.steps=5", "--resume=force", checkpoint=checkpoint) == 2
    assert "has done 6 steps and this run has only 5; give it more" in capsys.readouterr().err


@pytest.mark.parametrize("step", [-1, 5])
def test_a_step_without_checkpoint_is_refused(
    step: int, whole: Path, data: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(data, whole, *RUN, f"--restore={step}", checkpoint=checkpoint) == 2
    assert f"has no whole checkpoint of step {step}; there are 4, 6." in capsys.readouterr().err


def test_frozen_parameters_of_another_checkpoint_are_refused(
    whole: Path,
    data: Path,
    checkpoint: Path,
    tokenizer_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    other = write_checkpoint(tmp_path / "other", tokenizer_folder, seed=1)
    assert run(data, whole, *RUN, checkpoint=other) == 2
    told = f"the frozen parameters came from {checkpoint} and would come from {other} with other content. Undo that"
    assert told in capsys.readouterr().err
    assert run(data, whole, *RUN, "--resume=force", checkpoint=other) == 0
    assert "forced: the frozen parameters came from" in capsys.readouterr().err
    moved = shutil.copytree(checkpoint, tmp_path / "moved")
    assert run(data, whole, *RUN, checkpoint=moved) == 0


def test_a_picture_that_cannot_be_read_is_counted(
    checkpoint: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = write_data(tmp_path / "data")
    (tmp_path / "data" / "7.png").write_bytes(b"no picture")
    more = ("--config.data.on_error=skip", "--config.data.max_skipped=0.5", "--config.eval.every=0")
    assert run(data, tmp_path / "work", *more, checkpoint=checkpoint) == 0
    assert sum(record["skipped"] for record in records(tmp_path / "work")) == 1.0
    assert "goes without a sample: " in caplog.text
    assert "s7" in caplog.text


def test_tokens_of_a_picture_that_cannot_be_read_are_no_tokens_a_second(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_data(tmp_path / "data")
    (tmp_path / "data" / "7.png").write_bytes(b"no picture")
    more = ("--config.data.on_error=skip", "--config.data.max_skipped=0.5", "--config.eval.every=0")
    more = (*more, "--config.global_batch_size=24", "--config.device_batch_size=8", "--config.steps=1")
    assert run(data, tmp_path / "work", *more, "--dry-run", "--json", checkpoint=checkpoint) == 0
    samples = json.loads(capsys.readouterr().out)["first_batch"]["samples"]
    read = [sample["tokens"] for sample in samples if "error" not in sample]
    assert len(read) == len(samples) - 1 == 19  # four are without a picture
    assert run(data, tmp_path / "work", *more, checkpoint=checkpoint) == 0
    (record,) = records(tmp_path / "work")
    assert record["tokens_per_second"] * record["seconds"] == pytest.approx(sum(read))
    assert "read_tokens" not in record


def test_a_step_to_trace_that_is_none_of_the_run_is_told(
    data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--config.steps=1", "--config.log.health_every=0", "--profile=2:3")
    assert run(data, tmp_path, *more, checkpoint=checkpoint) == 0
    assert "warning: --profile traces nothing: this start does the steps 1 to 1, not 2" in capsys.readouterr().err
    assert not (tmp_path / "profile").exists()


def test_answers_that_are_not_judged_have_no_keep_rate(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    more = ("--config.steps=1", "--config.loss.min_answer_tokens=500", "--config.log.health_every=0")
    assert run(data, tmp_path, *more, checkpoint=checkpoint) == 0
    (record,) = records(tmp_path)
    assert "output_keep_rate" not in record
    assert 0 < record["image_keep_rate"] < 1
    assert None not in record.values()


def test_other_data_are_refused(
    whole: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(write_data(tmp_path, seed=5), whole, *RUN, checkpoint=checkpoint) == 2
    assert "the data, or the order of the samples, are others" in capsys.readouterr().err


def test_a_bad_loss_ends_the_run_before_it_is_saved(
    data: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    problems = iter([None, None, None, "the loss is nan"])
    monkeypatch.setattr(LossWatch, "problem", lambda self, loss: next(problems))
    more = ("--config.checkpoint.every=2", "--config.checkpoint.keep_best=False", "--config.eval.every=0")
    assert run(data, tmp_path, *RUN[:1], *more, checkpoint=checkpoint) == 1
    *_, account, line = capsys.readouterr().err.splitlines()
    assert account.startswith("dynllava: goodput ")
    assert "Stopped at step 4: the loss is nan; its samples are s" in line
    assert line.endswith("the last checkpoint is that of step 2.")
    assert saved(tmp_path) == [2]
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3, 4]


def test_no_run_ends_for_what_only_people_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "experiment.json").mkdir()
    loop._write_experiment(TrainConfig(), loop.Options(str(tmp_path)))
    assert "experiment.json could not be written: Is a directory" in caplog.text
