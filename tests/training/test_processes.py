"""Several real processes train one run: some are lost, some told to stop, and nothing of the result shows it."""

import bisect
import functools
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from dynllava_jax.checkpoint import orbax_items, trained
from dynllava_jax.errors import InputError
from dynllava_jax.training import loop
from dynllava_jax.training.guard import LOST
from dynllava_jax.training.processes import SILENCE, join
from dynllava_jax.training.step import Trainer
from dynllava_jax.training.stop import EXIT_SAVED
from tests.training.process_group import ROOT, Processes, ends, fed, last_line, start
from tests.training.process_run import telling_feed, told_at
from tests.training.runs import command, records, run, saved, write_data

STEPS, EPOCH = 10, 5
BOUND = 1e-6
"""Of every parameter after all steps. Only the order of sums differs, and `eps` keeps Adam from magnifying that: it was
1.2e-7 when this was written."""
NOTICED = 120.0
"""Seconds after which all are gone once one is, where a silence of 30 counts as its end; on a busy machine too. With
10 a run had once ended before its process hung, nobody knows why: a pause of the machine may count as such a loss."""
RUN = (
    *(f"--config.steps={STEPS}", "--config.checkpoint.every=1", "--config.log.health_every=0"),
    *("--config.optimizer.eps=1e-3", "--config.optimizer.warmup_ratio=0.0"),
)


def parameters(workdir: Path) -> dict[str, np.ndarray]:
    step = epath.Path(workdir / "checkpoints" / str(STEPS))
    return orbax_items.load_some(step, trained.PARAMS, trained.read_info(step).items[trained.PARAMS])


def assert_lost(number: int | str, said: str) -> None:
    line = last_line(said)
    who = rf"process {number} on {re.escape(socket.gethostname())}"
    assert re.match(f"dynllava: error: {who} was lost .*: the run stops on all hosts; ", line), said


@pytest.mark.slow
def test_hosts_come_and_go(
    tmp_path: Path, tokenizer_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, workdir = write_data(tmp_path / "data", 48), tmp_path / "run"
    more = (*RUN, f"--config.init.tokenizer={tokenizer_folder}")

    def here(workdir: Path, name: str) -> int:
        monkeypatch.setenv("IDS", str(tmp_path / f"{name}.0"))
        return run(data, workdir, *more)

    def several(count: int, name: str, number: int, told: str, silence: int = 30) -> Processes:
        """Over one mesh of four devices; `number` sends itself a signal."""
        each = {
            "IDS": [str(tmp_path / f"{name}.{n}") for n in range(count)],
            "JAX_NUM_CPU_DEVICES": [str(4 // count)] * count,
            SILENCE: [str(silence)] * count,
        }
        argv = command(data, workdir, *more, "--config.mesh=data=2,fsdp=2", "--deterministic")
        environments = {variable: dict(enumerate(values)) for variable, values in each.items()}
        return start([argv] * count, SIGNAL={number: told}, **environments)

    def assert_noticed(name: str, number: int) -> None:
        """All have ended now."""
        passed = time.time() - told_at(tmp_path / f"{name}.{number}").stat().st_mtime
        print(f"{name}: all have ended {passed:.0f} s after process {number} was lost")
        assert passed < NOTICED

    monkeypatch.setattr(loop, "Trainer", functools.cache(Trainer))
    monkeypatch.setattr(loop, "Feed", telling_feed())
    assert here(tmp_path / "alone", "alone") == 0

    # Four processes, of which one is killed before its third step.
    statuses, said = ends(several(4, "four", 2, "2:KILL"))
    assert statuses == [LOST] * 4, said
    assert_noticed("four", 2)
    for number in (0, 1, 3):
        assert_lost(2, said[number])
    assert "the training process ended with SIGKILL, mostly for want of memory" in last_line(said[2])
    kept = [saved(workdir)[-1]]
    assert kept[-1] in (1, 2)

    # Two go on, and the first, which all others hang on, is killed before the fifth.
    statuses, said = ends(several(2, "two", 0, "4:KILL"))
    assert statuses == [LOST] * 2, said
    assert_noticed("two", 0)
    assert f"going on from step {kept[-1]} " in said[0]
    assert "the training process ended with SIGKILL, mostly for want of memory" in last_line(said[0])
    assert_lost(0, said[1])
    kept.append(saved(workdir)[-1])
    assert kept[-1] in (3, 4)

    # Two again, and one hangs before the sixth. When it wakes it stops too: it finds the first one gone, or hears that
    # it counts as lost itself.
    statuses, said = ends(several(2, "hung", 1, "5:STOP"), hung=1)
    assert statuses == [LOST] * 2, said
    assert_noticed("hung", 1)
    assert f"going on from step {kept[-1]} " in said[0]
    assert_lost(1, said[0])
    assert_lost("[01]", said[1])
    kept.append(saved(workdir)[-1])
    assert kept[-1] in (4, 5)

    # Four, of which one is told to stop before the seventh.
    statuses, said = ends(several(4, "stopped", 2, "6:USR1", silence=60))
    assert statuses == [EXIT_SAVED] * 4, said
    assert f"going on from step {kept[-1]} " in said[0]
    kept.append(saved(workdir)[-1])
    assert kept[-1] == records(workdir)[-1]["step"] == 9  # two steps after the vote

    # One finishes it.
    capsys.readouterr()
    assert here(workdir, "one") == 0
    assert re.search(r"goodput \d.* in 5 starts; lost: restart .* lay between the starts", capsys.readouterr().err)
    assert [record["step"] for record in records(workdir)] == list(range(1, STEPS + 1))

    wanted = fed(tmp_path, "alone", 1)
    parts = [
        fed(tmp_path, name, count) for name, count in (("four", 4), ("two", 2), ("hung", 2), ("stopped", 4), ("one", 1))
    ]
    lineage = [parts[bisect.bisect_right(kept, step)][step] for step in range(STEPS)]
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


@pytest.mark.slow
def test_a_process_whose_guard_is_killed_at_once_does_not_train_on(tmp_path: Path, tokenizer_folder: Path) -> None:
    """Nobody would stop it, or say how it ended, and it would hold the work folder."""
    data = write_data(tmp_path / "data")
    argv = command(data, tmp_path / "run", *RUN, f"--config.init.tokenizer={tokenizer_folder}", "--config.mesh=data=2")
    both = start([argv, argv], **{SILENCE: {0: "10", 1: "10"}})
    children = Path(f"/proc/{both[1].pid}/task/{both[1].pid}/children")
    while not children.read_text():
        time.sleep(0.01)
    both[1].kill()
    statuses, said = ends(both)
    assert statuses == [LOST, -signal.SIGKILL]
    assert_lost(1, said[0])


@pytest.mark.slow
def test_ctrl_c_to_one_process_ends_the_other(tmp_path: Path, tokenizer_folder: Path) -> None:
    """It had left without a word, and both hung: the one in JAX's farewell, the other in a step."""
    data = write_data(tmp_path / "data")
    argv = command(data, tmp_path / "run", *RUN, f"--config.init.tokenizer={tokenizer_folder}", "--config.mesh=data=2")
    ids = {number: str(tmp_path / f"ids.{number}") for number in range(2)}
    statuses, said = ends(start([argv, argv], IDS=ids, SIGNAL={1: "1:INT"}))
    assert statuses == [130, 130]
    assert last_line(said[1]) == "dynllava: interrupted"
    assert last_line(said[0]) == f"dynllava: error: process 1 on {socket.gethostname()} has ended: interrupted"


@pytest.mark.slow
def test_data_that_one_process_cannot_read_end_the_other(tmp_path: Path, tokenizer_folder: Path) -> None:
    """Once something was saved, it had waited for the others to agree on that, while they waited for its rows."""
    data = write_data(tmp_path / "data", 48)
    argv = command(data, tmp_path / "run", *RUN, f"--config.init.tokenizer={tokenizer_folder}", "--config.mesh=data=2")
    argv += ["--config.data.prefetch=1"]  # both have begun and saved a step before the last are read
    ids = {number: str(tmp_path / f"ids.{number}") for number in range(2)}
    (data.parent / "20.png").write_bytes(b"no picture")
    statuses, said = ends(start([argv, argv], IDS=ids))
    assert statuses == [2, 2]
    (told,) = (line for line in map(last_line, said) if "has ended" not in line)
    (heard,) = (line for line in map(last_line, said) if "has ended" in line)
    assert told.startswith("dynllava: error: Sample 's20': unreadable image")
    assert f"The last checkpoint is that of step {saved(tmp_path / 'run')[-1]}: the same command goes on" in told
    assert heard.endswith(told.removeprefix("dynllava: error: "))


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_the_last_checkpoint_that_one_process_cannot_write_ends_both(
    number: int, tmp_path: Path, tokenizer_folder: Path
) -> None:
    """Both had hung: it asked the other one how its part went, which waited in Orbax for this one's."""
    data = write_data(tmp_path / "data", 48)
    argv = command(data, tmp_path / "run", *RUN, f"--config.init.tokenizer={tokenizer_folder}", "--config.mesh=data=2")
    argv += [f"--config.checkpoint.every={STEPS - 2}"]
    ids = {other: str(tmp_path / f"ids.{other}") for other in range(2)}
    statuses, said = ends(start([argv, argv], IDS=ids, FULL={number: str(STEPS - 1)}))
    assert statuses == [2, 2], said
    # Threads of Orbax may have a word after it.
    (told,) = (line for line in said[number].splitlines() if line.startswith("dynllava: error: "))
    assert f"Checkpoint {tmp_path / 'run' / 'checkpoints' / str(STEPS)} could not be written: " in told
    assert told.endswith(f"then the same command goes on from step {STEPS - 2}.")
    assert last_line(said[1 - number]).startswith(f"dynllava: error: process {number} on ")
    assert saved(tmp_path / "run") == [STEPS - 2]


@pytest.mark.slow
def test_sigterm_ends_a_process_that_has_only_joined() -> None:
    """JAX had caught it, and the run went on as if nothing had come."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    program = (
        "import os, signal, time; from dynllava_jax.training.processes import join\n"
        f"join('{address},1,0'); os.kill(os.getpid(), signal.SIGTERM); time.sleep(5)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == -signal.SIGTERM, done.stderr


def test_a_wrong_address_is_refused() -> None:
    with pytest.raises(InputError, match=r"--distributed here is not HOST:PORT,COUNT,NUMBER"):
        join("here")
    with pytest.raises(InputError, match="is not HOST:PORT"):
        join("localhost:1,2,2")


@pytest.mark.parametrize("text", ["1m", "0", "-5", "2.5"])
def test_a_silence_that_is_no_number_of_seconds_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was told as an address at which no other process is."""
    monkeypatch.setenv(SILENCE, text)
    with pytest.raises(InputError, match=f"^DYNLLAVA_SILENCE={text} is no whole number of seconds, such as 60.$"):
        join("localhost:1,1,0")
