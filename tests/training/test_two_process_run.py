"""`dynllava train` as two processes: one of them is told to stop, both save at one step and say so."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dynllava_jax.errors import InputError
from dynllava_jax.training.processes import join
from dynllava_jax.training.stop import EXIT_SAVED
from tests.training.runs import command, records, run, saved, write_data

ROOT = Path(__file__).parents[2]


def start(data: Path, workdir: Path, tokenizer: Path, address: str, number: int) -> subprocess.Popen[bytes]:
    argv = command(data, workdir, "--config.steps=4000", f"--config.init.tokenizer={tokenizer}")
    argv += ["--config.mesh=data=2", "--deterministic", f"--distributed={address},2,{number}"]
    # One device each: on few cores, several devices of a process starve each other in Gloo's collectives.
    environment = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "1"}
    return subprocess.Popen([sys.executable, "-m", "dynllava_jax.cli.main", *argv], env=environment, cwd=ROOT)


@pytest.mark.slow
def test_a_signal_to_one_process_saves_and_stops_both(tmp_path: Path, tokenizer_folder: Path) -> None:
    data, workdir = write_data(tmp_path / "data", 48), tmp_path / "run"
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    both = [start(data, workdir, tokenizer_folder, address, number) for number in range(2)]
    try:
        while not (workdir / "metrics.jsonl").exists() or len(records(workdir)) < 3:
            assert all(process.poll() is None for process in both)
            time.sleep(0.2)
        both[1].send_signal(signal.SIGUSR1)
        assert [process.wait(120) for process in both] == [EXIT_SAVED, EXIT_SAVED]
    finally:
        for process in both:
            process.kill()
    (step,) = [last for last in saved(workdir) if last == records(workdir)[-1]["step"]]
    # One process with one device goes on where two stopped.
    more = (f"--config.steps={step + 2}", f"--config.init.tokenizer={tokenizer_folder}", "--resume=force")
    assert run(data, workdir, *more) == 0
    assert [record["step"] for record in records(workdir)] == list(range(1, step + 3))


def test_a_wrong_address_is_refused() -> None:
    with pytest.raises(InputError, match=r"--distributed here is not HOST:PORT,COUNT,NUMBER"):
        join("here")
    with pytest.raises(InputError, match="is not HOST:PORT"):
        join("localhost:1,2,2")
