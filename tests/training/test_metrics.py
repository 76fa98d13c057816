"""Records reach every writer once, also over a resume, and only from process 0."""

import importlib
import json
import sys
import time
import types
from pathlib import Path
from typing import Any

import jax
import pytest

from dynllava_jax.config.training import LogConfig, TrainConfig
from dynllava_jax.errors import InputError
from dynllava_jax.training import metrics
from dynllava_jax.training.metrics import Progress, check_packages, open_writers, spell_time, summary

QUIET = TrainConfig(log=LogConfig(tensorboard=False))


def write(folder: Path, steps: range, config: TrainConfig = QUIET) -> None:
    with open_writers(str(folder), config, steps.start - 1, 6) as writers:
        for step in steps:
            for writer in writers:
                writer.write(step, {"loss": step / 2, "image_keep_rate": 0.2})


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_no_step_stands_twice_after_a_resume(tmp_path: Path) -> None:
    write(tmp_path, range(1, 6))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')  # the process was killed here
    write(tmp_path, range(4, 7))
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert records(tmp_path)[0] == {"step": 1, "loss": 0.5, "image_keep_rate": 0.2}
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_new_run_in_an_old_folder_begins_anew(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    write(tmp_path, range(1, 3))
    assert [record["step"] for record in records(tmp_path)] == [1, 2]


def test_numbers_that_are_none_stay_valid_json(tmp_path: Path) -> None:
    with open_writers(str(tmp_path), QUIET, 0, 1) as writers:
        for writer in writers:
            writer.write(1, {"loss": float("nan"), "grad_norm": float("inf")})
    assert records(tmp_path) == [{"step": 1, "loss": None, "grad_norm": None}]


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    with open_writers(str(tmp_path), QUIET, 0, 1) as (lines, _):
        (tmp_path / "metrics.jsonl").unlink()
        (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
        with pytest.raises(InputError, match=r"metrics.jsonl could not be written: No space left on device; see to it"):
            lines.write(1, {"loss": 1.0})


def test_a_disk_that_is_full_at_the_start_is_named(tmp_path: Path) -> None:
    write(tmp_path, range(1, 3))
    (tmp_path / "metrics.jsonl.tmp").symlink_to("/dev/full")
    with (
        pytest.raises(InputError, match=r"metrics.jsonl could not be written: No space left on device; see to it"),
        open_writers(str(tmp_path), QUIET, 2, 3),
    ):
        pass


def test_a_damaged_record_costs_no_other(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    first, second, third = (tmp_path / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "metrics.jsonl").write_bytes(first + second.replace(b"{", b"\xff") + third)
    write(tmp_path, range(4, 5))
    assert [record["step"] for record in records(tmp_path)] == [1, 3, 4]


def test_a_bucket_is_written_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "is_remote", lambda path: True)
    monkeypatch.setattr(metrics, "_REMOTE_SECONDS", -1.0)
    write(tmp_path, range(1, 4))
    write(tmp_path, range(2, 5))
    assert [record["step"] for record in records(tmp_path)] == [1, 2, 3, 4]


def test_a_kill_takes_nothing_that_a_checkpoint_goes_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "is_remote", lambda path: True)
    with open_writers(str(tmp_path), QUIET, 0, 6) as writers:
        for step in (1, 2):
            for writer in writers:
                writer.write(step, {"loss": 0.5})
        for writer in writers:
            writer.flush()
        assert [record["step"] for record in records(tmp_path)] == [1, 2]


def test_only_process_0_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    write(tmp_path, range(1, 3))
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_events_hold_the_values(tmp_path: Path) -> None:
    write(tmp_path, range(1, 3), TrainConfig())
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert b"image_keep_rate" in events.read_bytes()


def test_wandb_goes_on_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    run = types.SimpleNamespace(
        log=lambda values, step: calls.append((step, values["loss"])), finish=lambda: calls.append("finish")
    )

    def init(**options: Any) -> Any:
        calls.append((options["project"], options["id"], options["config"]["global_batch_size"]))
        return run

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    config = TrainConfig(log=LogConfig(tensorboard=False, wandb_project="mine"))
    write(tmp_path, range(1, 3), config)
    write(tmp_path, range(3, 4), config)
    first, *_, second = (call for call in calls if isinstance(call, tuple) and call[0] == "mine")
    assert first == second
    assert first[2] == 64
    assert calls[1:4] == [(1, 0.5), (2, 1.0), "finish"]


@pytest.mark.parametrize(
    ("log", "package"),
    [(LogConfig(wandb_project="mine", tensorboard=False), "wandb"), (LogConfig(), "tensorboardX")],
)
def test_a_package_that_is_not_there_is_named(log: LogConfig, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", refuse)
    with pytest.raises(InputError, match=f"needs {package}; run: pip install {package}"):
        check_packages(log)


def test_progress_without_a_terminal_is_a_line_now_and_then(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, range(1, 7))
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["1/6", "6/6"]
    assert "loss 0.5  image 0.20  ETA 0:00:0" in lines[0]
    assert lines[1].endswith("ETA 0:00:00")


def test_compiling_is_not_taken_for_the_pace_of_the_steps_to_come(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    progress = Progress(10, 1010)
    for step in range(11, 33):
        now += 600.0 if step == 11 else 2.0
        progress.write(step, {"loss": 0.5})
    later = capsys.readouterr().err.splitlines()[1]
    assert later == f"step 26/1010  loss 0.5  ETA {spell_time(2.0 * (1010 - 26))}"


def test_progress_on_a_terminal_is_a_bar(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    write(tmp_path, range(4, 7))
    assert "6/6" in capsys.readouterr().err


def test_the_summary_shows_what_is_there() -> None:
    values = {"loss": 1.23456, "output_keep_rate": 0.512, "tokens_per_second": 12345.6, "mfu": 0.4123, "tau": 0.5}
    assert summary(values) == "loss 1.235  answer 0.51  1.235e+04 tokens/s  MFU 41.2%"
    assert summary({"image_keep_rate": 0.2, "instruct_keep_rate": 0.7}) == "image 0.20  instruction 0.70"
