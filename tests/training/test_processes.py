"""Several real processes train one run: one is lost, others are told to stop, and nothing of the result shows it."""

import collections
import functools
import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np
import pytest
from etils import epath

from dynllava_jax.checkpoint import orbax_items, trained
from dynllava_jax.errors import InputError
from dynllava_jax.training import loop
from dynllava_jax.training.processes import SILENCE, join
from dynllava_jax.training.step import Trainer
from dynllava_jax.training.stop import EXIT_SAVED
from tests.training.process_run import telling_feed
from tests.training.runs import command, records, run, saved, write_data

ROOT = Path(__file__).parents[2]
STEPS, EPOCH = 10, 5
BOUND = 1e-6
"""Of every parameter after all steps. Only the order of sums differs, and `eps` keeps Adam from magnifying that: it was
1.2e-7 when this was written."""
RUN = (
    *(f"--config.steps={STEPS}", "--config.checkpoint.every=2", "--config.log.health_every=0"),
    *("--config.optimizer.eps=1e-3", "--config.optimizer.warmup_ratio=0.0"),
)


def start(commands: Iterable[list[str]], **environments: dict[int, str]) -> list[subprocess.Popen[str]]:
    """A process for each command; `environments`: name -> value for some of them, by number."""
    commands = list(commands)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    return [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.training.process_run", *argv),
                f"--distributed={address},{len(commands)},{n}",
            ],
            env=os.environ
            | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
            | {name: values[n] for name, values in environments.items() if n in values},
            cwd=ROOT,
            text=True,
            stderr=subprocess.PIPE,
        )
        for n, argv in enumerate(commands)
    ]


def ends(processes: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Exit statuses, and what each said."""
    try:
        said = [process.communicate(timeout=400)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said


def last_line(said: str) -> str:
    return said.splitlines()[-1]


def fed(folder: Path, name: str, count: int) -> dict[int, list[str]]:
    """The ids of all processes together, by step."""
    found = collections.defaultdict(list)
    for number in range(count):
        for line in (folder / f"{name}.{number}").read_text().splitlines():
            step, ids = json.loads(line)
            found[step] += ids
    return found


def parameters(workdir: Path) -> dict[str, np.ndarray]:
    step = epath.Path(workdir / "checkpoints" / str(STEPS))
    return orbax_items.load_some(step, trained.PARAMS, trained.read_info(step).items[trained.PARAMS])


@pytest.mark.slow
def test_two_processes_then_four_then_one(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, workdir = write_data(tmp_path / "data", 48), tmp_path / "run"
    more = (*RUN, f"--config.init.tokenizer={tokenizer_folder}")

    def ids(name: str, count: int) -> dict[int, str]:
        return {number: str(tmp_path / f"{name}.{number}") for number in range(count)}

    def here(workdir: Path, name: str) -> int:
        monkeypatch.setenv("IDS", ids(name, 1)[0])
        return run(data, workdir, *more)

    monkeypatch.setattr(loop, "Trainer", functools.cache(Trainer))
    monkeypatch.setattr(loop, "Feed", telling_feed())
    assert here(tmp_path / "alone", "alone") == 0

    # Two processes with two devices each, of which one dies before its sixth step.
    mesh = ("--config.mesh=data=2,fsdp=2", "--deterministic")
    silence, devices = {0: "10", 1: "10"}, {0: "2", 1: "2"}
    two = start(
        [command(data, workdir, *more, *mesh)] * 2,
        **{"IDS": ids("two", 2), "SIGNAL": {1: "5:KILL"}, SILENCE: silence, "JAX_NUM_CPU_DEVICES": devices},
    )
    two[1].wait(300)
    died = time.monotonic()
    statuses, said = ends(two)
    print(f"the other process knew {time.monotonic() - died:.0f} s after one had died")
    assert statuses == [75, 75]
    assert re.match(
        rf"dynllava: error: process 1 on {re.escape(socket.gethostname())} was lost .*: the run stops on all hosts; ",
        last_line(said[0]),
    ), said[0]
    assert "the training process ended with SIGKILL, mostly for want of memory" in last_line(said[1])
    kept = saved(workdir)[-1]
    assert kept in (2, 4)

    # Four with one device each go on, and one of them is told to stop before the seventh step.
    four = start(
        [command(data, workdir, *more, *mesh)] * 4,
        IDS=ids("four", 4),
        SIGNAL={2: "6:USR1"},
    )
    statuses, said = ends(four)
    assert statuses == [EXIT_SAVED] * 4, said
    assert f"going on from step {kept} " in said[0]
    stopped = saved(workdir)[-1]
    assert stopped == records(workdir)[-1]["step"] == 9  # two steps after the vote

    # One finishes it.
    capsys.readouterr()
    assert here(workdir, "one") == 0
    assert re.search(r"goodput \d.* in 3 starts; lost: restart .* lay between the starts", capsys.readouterr().err)
    assert [record["step"] for record in records(workdir)] == list(range(1, STEPS + 1))

    wanted, *parts = (
        fed(tmp_path, "alone", 1),
        fed(tmp_path, "two", 2),
        fed(tmp_path, "four", 4),
        fed(tmp_path, "one", 1),
    )
    lineage = [parts[0 if step < kept else 1 if step < stopped else 2][step] for step in range(STEPS)]
    assert [sorted(step) for step in lineage] == [sorted(wanted[step]) for step in range(STEPS)]
    for epoch in (lineage[:EPOCH], lineage[EPOCH:]):
        seen = [id for step in epoch for id in step]
        assert len(seen) == len(set(seen)) == 40
    one, other = parameters(tmp_path / "alone"), parameters(workdir)
    apart = max(float(np.max(np.abs(value - other[path]))) for path, value in one.items())
    print(f"the parameters are {apart:.1e} apart from those of one process")
    assert apart < BOUND


@pytest.mark.slow
def test_what_ends_one_process_ends_the_other(tmp_path: Path, tokenizer_folder: Path) -> None:
    more = (f"--config.init.tokenizer={tokenizer_folder}", "--config.mesh=data=2")
    argv = command(write_data(tmp_path / "data"), tmp_path / "run", *more)
    statuses, said = ends(start([argv, [*argv, "--config.data.source=nowhere.json"]]))
    assert statuses == [2, 2]
    assert last_line(said[1]) == "dynllava: error: The data source nowhere.json does not exist; check data.source."
    assert last_line(said[0]).startswith("dynllava: error: process 1 on ")
    assert last_line(said[0]).endswith("has ended: The data source nowhere.json does not exist; check data.source.")


def test_several_devices_of_a_cpu_get_threads_to_wait_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *args, **options: None)
    monkeypatch.delenv("NPROC", raising=False)
    join("localhost:1,2,0")
    assert os.environ["NPROC"] == "32"
    monkeypatch.setenv("NPROC", "5")
    join("localhost:1,2,0")
    assert os.environ["NPROC"] == "5"


def test_a_wrong_address_is_refused() -> None:
    with pytest.raises(InputError, match=r"--distributed here is not HOST:PORT,COUNT,NUMBER"):
        join("here")
    with pytest.raises(InputError, match="is not HOST:PORT"):
        join("localhost:1,2,2")
