"""A run that saves at every step, to be killed; `test_killed.py` starts it. Arguments: work folder, last step."""

import sys
from pathlib import Path
from typing import Any

import jax

from tests.training.states import DATA, make, open_run


@jax.jit
def train_step(state: Any) -> Any:
    """Any function of the state that does not forget."""
    return jax.tree.map(lambda x: (x * 1.5 + 1).astype(x.dtype) % 97, state)


def main(workdir: Path, last: int) -> None:
    (params, rest), step = make(0), 0
    with open_run(workdir) as checkpoints:
        if checkpoints.steps():
            found = checkpoints.restore(None, params, rest)
            params, rest, step = found.params, found.rest, found.info.step
        print("ready at", step, flush=True)
        while step < last:
            (params, rest), step = train_step((params, rest)), step + 1
            checkpoints.save_async(step, params, rest, DATA)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
