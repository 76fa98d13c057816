"""`dynllava train` as one of several processes, which writes down what it is fed; `test_processes.py` starts it.

Environment: `IDS`, the file to write to; `SIGNAL`, such as 5:KILL, what the process sends itself before which step;
`FULL`, the step before which it can no longer write files of more than 20 kB.
"""

import json
import os
import resource
import signal
import sys
from pathlib import Path

from dynllava_jax.cli.main import main
from dynllava_jax.training import guard


def told_at(ids: str | os.PathLike[str]) -> Path:
    """A file that is made when the process that writes to `ids` sends itself its signal."""
    return Path(f"{ids}.told")


def telling_feed() -> type:
    """A feed that writes the ids of every step to a file."""
    from dynllava_jax.training.feed import DeviceBatch, Feed

    class Telling(Feed):
        def __next__(self) -> DeviceBatch:
            batch = super().__next__()
            step, _, name = os.environ.get("SIGNAL", "").partition(":")
            if step == str(batch.step):
                told_at(os.environ["IDS"]).touch()
                os.kill(os.getpid(), signal.Signals[f"SIG{name}"])
            if os.environ.get("FULL") == str(batch.step):
                resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            with Path(os.environ["IDS"]).open("a") as file:
                file.write(json.dumps([batch.step, batch.ids]) + "\n")
            return batch

    return Telling


if __name__ == "__main__":
    if guard.is_guarded():
        from dynllava_jax.training import loop

        loop.Feed = telling_feed()  # pyright: ignore[reportAttributeAccessIssue]
    guard.PROGRAM = "tests.training.process_run"
    sys.exit(main())
