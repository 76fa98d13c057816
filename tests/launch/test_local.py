"""The rule by which a run is started again, on one machine."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.launch.conftest import Desk


@pytest.mark.parametrize(
    ("statuses", "runs", "status", "words"),
    [
        ([0], 1, 0, ""),
        ([75, 137, 134, 0], 4, 0, "lost a process by signal 9: starting again (2 of at most 3)"),
        ([1, 0], 1, 1, "status 1: not started again"),
        ([2, 0], 1, 2, "status 2: not started again"),
        ([130, 0], 1, 130, "interrupted"),
        ([75, 75, 75, 75, 0], 4, 75, "started again 3 times already"),
    ],
)
def test_status_decides(desk: Desk, statuses: list[int], runs: int, status: int, words: str) -> None:
    desk.statuses(*statuses)
    found, _, error = desk.run("local.sh", "--config=c.py", "--workdir=run dir", MAX_RESTARTS="3")
    assert found == status
    assert desk.calls("dynllava") == ["train --config=c.py --workdir=run dir"] * runs
    assert words in error


@pytest.mark.parametrize(
    "said", [("MAX_RESTARTS", "08"), ("MAX_RESTARTS", "many"), ("PAUSE", "1m"), ("PAUSE", "0.5"), ("GPUS", "all")]
)
def test_numbers_that_are_none_are_refused_before_anything_runs(desk: Desk, said: tuple[str, str]) -> None:
    desk.statuses(75, 0)
    found, _, error = desk.run("local.sh", "--workdir=RUN", **dict([said]))
    assert (found, desk.calls("dynllava")) == (2, [])
    assert error == f"dynllava: error: {said[0]}={said[1]} is no whole number, such as 20\n"


@pytest.mark.parametrize("words", [["--restore=4"], ["--restore", "4"], ["--rest", "4"]])
def test_no_restart_goes_back_to_an_older_checkpoint(desk: Desk, words: list[str]) -> None:
    desk.statuses(75, 0)
    found, _, error = desk.run("local.sh", "--workdir=RUN", *words)
    assert (found, desk.calls("dynllava")) == (2, [])
    assert f"error: with {words[0].partition('=')[0]} every restart would go back to that step" in error
    assert desk.run("local.sh", "--workdir=RUN", *words, MAX_RESTARTS="0")[0] == 75
    assert desk.calls("dynllava") == [" ".join(["train", "--workdir=RUN", *words])]


def test_a_process_gets_flags_cache_and_devices(desk: Desk) -> None:
    desk.fake("dynllava", 'echo "$JAX_COMPILATION_CACHE_DIR|$CUDA_VISIBLE_DEVICES|$XLA_FLAGS|$LIBTPU_INIT_ARGS"')
    _, out, _ = desk.run("local.sh", "--workdir=RUN/", GPUS="4", XLA_FLAGS="--mine", LIBTPU_INIT_ARGS="--yours")
    cache, devices, gpu, tpu = out.strip().split("|")
    assert (cache, devices) == ("RUN/programs", "0,1,2,3")
    assert gpu.startswith("--xla_gpu")
    assert gpu.endswith(" --mine")
    assert tpu.endswith(" --yours")
    assert desk.run("local.sh", "--workdir", "RUN", COMPILE_CACHE="gs://b/c")[1].startswith("gs://b/c|")
    assert desk.run("local.sh", "--workdir", "RUN")[1].startswith("RUN/programs|")


@pytest.mark.parametrize(
    ("workdir", "folder"),
    [
        ("~/RUN", "HOME/RUN"),
        ("~", "HOME"),
        ("a/~/b", "a/~/b"),
        ("~root/R$(touch ran) S", "ROOT/R$(touch ran) S"),
        ("~nobody_here;touch ran/R", "~nobody_here;touch ran/R"),
        ("~-/R", "~-/R"),
    ],
)
@pytest.mark.parametrize("joined", [True, False])
def test_the_cache_is_where_train_expands_the_work_folder(desk: Desk, workdir: str, folder: str, joined: bool) -> None:
    desk.fake("dynllava", 'echo "$JAX_COMPILATION_CACHE_DIR"; [[ ! -e ran ]]')
    words = [f"--workdir={workdir}"] if joined else ["--workdir", workdir]
    found, out, error = desk.run("local.sh", *words, HOME=str(desk.folder))
    wanted = folder.replace("HOME", str(desk.folder)).replace("ROOT", os.path.expanduser("~root"))
    assert (found, out, error) == (0, f"{wanted}/programs\n", "")
    assert desk.calls("dynllava") == [" ".join(["train", *words])]


@pytest.mark.parametrize(
    ("given", "taken"), [("4,5,6,7", "4,5"), ("GPU-a,GPU-b", "GPU-a,GPU-b"), ("3", None), ("", None)]
)
def test_gpus_are_taken_of_those_that_one_may_use(desk: Desk, given: str, taken: str | None) -> None:
    desk.fake("dynllava", 'echo "$CUDA_VISIBLE_DEVICES"')
    found, out, error = desk.run("local.sh", "--workdir=RUN", GPUS="2", CUDA_VISIBLE_DEVICES=given)
    if taken is None:
        assert (found, out, desk.calls("dynllava")) == (2, "", [])
        assert error.startswith(f"dynllava: error: GPUS=2, but CUDA_VISIBLE_DEVICES={given} lets this machine use ")
    else:
        assert (found, out) == (0, f"{taken}\n")


@pytest.mark.parametrize(("number", "runs", "status"), [(signal.SIGUSR1, 2, 0), (signal.SIGTERM, 1, 75)])
def test_signals_reach_the_run(desk: Desk, tmp_path: Path, number: signal.Signals, runs: int, status: int) -> None:
    desk.fake(
        "dynllava",
        "[[ -e begun ]] && exit 0; trap 'exit 75' USR1 TERM; touch begun; for _ in {1..300}; do sleep 0.1; done",
    )
    process = desk.start("local.sh", "--workdir=RUN")
    while not (tmp_path / "begun").exists():
        time.sleep(0.02)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert process.returncode == status
    assert len(desk.calls("dynllava")) == runs


def test_a_stop_between_two_tries_is_heard_at_once(desk: Desk) -> None:
    desk.fake("dynllava", "exit 75")
    with desk.start("local.sh", "--workdir=RUN", PAUSE="600") as process:
        assert process.stderr is not None
        assert "starting again (1 of at most 20)" in process.stderr.readline()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 75
    assert len(desk.calls("dynllava")) == 1
