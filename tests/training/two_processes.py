"""One of two processes of a run; `test_two_processes.py` starts both.

Arguments: number, coordinator's address, folders of a run, of a damaged run, and of a run to write.
"""

import os
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from dynllava_jax.checkpoint import trained
from dynllava_jax.errors import InputError
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.training.stop import StopSignal
from tests.training.states import DATA, make, open_run


def say(*values: object) -> None:
    print("said", *values, flush=True)


@jax.jit
def same(a: object, b: object) -> jax.Array:
    return jax.tree.reduce(jnp.logical_and, jax.tree.map(lambda x, y: jnp.all(x == y), a, b))


def main(number: int, address: str, saved: Path, damaged: Path, workdir: Path) -> None:
    jax.distributed.initialize(address, num_processes=2, process_id=number)
    mesh = make_mesh("fsdp=8")

    with open_run(saved) as checkpoints:
        found = checkpoints.restore(None, *make(0, mesh))
        say("same", bool(same((found.params, found.rest), make(200, mesh))))

    # As for files that are too large to have a hash of their own.
    trained._check_file = lambda path, digest: None
    with open_run(damaged) as checkpoints:
        try:
            checkpoints.restore(None, *make(0, mesh))
        except InputError as error:
            say(error)

    with open_run(workdir) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save_async(step, *make(step, mesh), DATA)
        checkpoints.wait()
        say("steps", *checkpoints.steps())

    for told in (0, 1):
        with StopSignal() as stop:
            step = 0
            while not stop.agreed():
                step += 1
                if step == 5 and number == told:
                    os.kill(os.getpid(), signal.SIGUSR1 if told else signal.SIGTERM)
            say("stopped", step)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], *map(Path, sys.argv[3:]))
