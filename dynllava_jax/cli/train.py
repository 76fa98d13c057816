"""`dynllava train`: a run from its config file, begun or gone on with."""

import argparse
import contextlib
import os
import re
import signal
import time
from collections.abc import Iterator
from typing import Any

from dynllava_jax.cli.failure import report
from dynllava_jax.cli.output import add_json, check_name, write_json
from dynllava_jax.errors import InputError
from dynllava_jax.training.guard import guard, is_guarded


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "train",
        help="fine-tune on your own data",
        description="Trains as FILE says. A work folder with checkpoints is gone on with. Exit status 0: the last step "
        "is done; 75: start it again: SIGTERM or SIGUSR1 came and everything is saved, or a process was lost; 1: the "
        "loss is no number any more; 2: bad input.",
        epilog="--config.KEY=VALUE changes a key of the config: --config.data.source=train.json --config.steps=100.",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a file of configs/, or your own")
    parser.add_argument("--workdir", metavar="DIR", help="checkpoints and metrics, here or gs://…")
    parser.add_argument(
        "--resume", choices=("force",), help="force: go on although config or data are not those of the checkpoints"
    )
    parser.add_argument("--restore", type=int, metavar="STEP", help="go on from this checkpoint (the newest)")
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and the first batch")
    parser.add_argument("--profile", metavar="START:COUNT", help="trace these steps into DIR/profile")
    parser.add_argument("--deterministic", action="store_true", help="the same bits in every run, on GPUs too; slower")
    parser.add_argument(
        "--distributed",
        nargs="?",
        const="auto",
        metavar="HOST:PORT,COUNT,NUMBER",
        help="one of several processes: where the first one listens, how many there are, which one this is (from 0); "
        "without a value as the cluster says (Slurm, TPU pods, Open MPI)",
    )
    add_json(parser)
    parser.set_defaults(run=run, overrides=())


def run(args: argparse.Namespace) -> int:
    if args.distributed is not None and not is_guarded():
        return guard(args.command_line)
    began = time.monotonic()
    if args.distributed is not None:  # the guard has the same answer to a signal, which need not wait for JAX there
        return _start(args, began)
    with _nothing_to_save():
        return _start(args, began)


@contextlib.contextmanager
def _nothing_to_save() -> Iterator[None]:
    """Before the run listens itself (`training.stop`), a signal ends it at once: only its preparation is lost."""
    before = {number: signal.signal(number, _leave) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _leave(number: int, frame: object) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"dynllava: {signal.Signals(number).name}: nothing to save\n".encode())
    os._exit(os.EX_TEMPFAIL)  # start it again


def _start(args: argparse.Namespace, began: float) -> int:
    if args.deterministic:
        # Read when the first device is asked for, which has not happened yet.
        flags = "--xla_gpu_deterministic_ops=true"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    if args.distributed is not None:
        from dynllava_jax.training.processes import join, shared_fate

        join(args.distributed)
        debug = "--debug" in args.command_line
        with shared_fate(lambda error: report(error, debug)):
            return _run(args, began)
    return _run(args, began)


def _run(args: argparse.Namespace, began: float) -> int:
    from dynllava_jax.config.experiment import read_experiment

    config = read_experiment(args.config, args.overrides)
    from dynllava_jax.checkpoint.paths import as_path
    from dynllava_jax.training import describe
    from dynllava_jax.training.loop import Options, dry_run, train
    from dynllava_jax.training.stop import EXIT_SAVED

    if args.dry_run:
        described = dry_run(config)
        if args.json is not None:
            write_json(args.json, [described])
        else:
            print("\n".join(describe.lines(described)))
        return 0
    if not args.workdir:
        raise InputError("--workdir is missing or empty: name the folder for checkpoints and metrics.")
    check_name("--workdir", args.workdir)
    workdir = str(as_path(args.workdir, "--workdir"))
    options = Options(workdir, args.resume == "force", args.restore, _window(args.profile), began)
    result = train(config, options)
    if args.json is not None:
        write_json(args.json, [{"step": result.step, "steps": result.steps, "finished": result.finished}])
    return 0 if result.finished else EXIT_SAVED  # the same command goes on from there


def _window(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    if (match := re.fullmatch(r"(\d+):(\d+)", text)) is None or not int(match[1]) or not int(match[2]):
        raise InputError(f"--profile {text} is not START:COUNT, such as 20:3 for the steps 20, 21 and 22.")
    return int(match[1]), int(match[2])
