"""`dynllava demo`: the demo model's data, and the tower that its training begins with."""

import argparse
import dataclasses
import shutil
from typing import Any

from dynllava_jax.cli.local_path import local_path
from dynllava_jax.cli.output import add_json, make_folder, write_json
from dynllava_jax.errors import InputError
from dynllava_jax.progress import Progress


def add_parser(subparsers: Any) -> None:
    """Adds `demo make` and `demo tower`; the parsed namespace's `run` does the work."""
    from dynllava_jax.demo.dataset import Mixture
    from dynllava_jax.demo.scenes import SPLITS
    from dynllava_jax.demo.tower import TowerTraining

    parser = subparsers.add_parser("demo", help="make the demo model's data, and pretrain its tower")
    kinds = parser.add_subparsers(dest="kind", required=True)
    command = kinds.add_parser("make", help="write scenes with questions and descriptions as LLaVA JSON and pictures")
    command.add_argument("folder", type=local_path, metavar="DIR", help="where SPLIT.json and its pictures go")
    command.add_argument("--samples", type=int, default=8000, metavar="N", help="pictures (8000)")
    command.add_argument("--split", choices=SPLITS, default="train", help="which combinations may occur (train)")
    command.add_argument("--turns", type=int, default=Mixture.turns, metavar="N", help="questions a picture (8)")
    command.add_argument(
        "--descriptions", type=float, default=Mixture.descriptions, metavar="R", help="share of descriptions (0.3)"
    )
    command.add_argument("--seed", type=int, default=0, metavar="S", help="of the scenes (0)")
    command.add_argument(
        "--workers", type=int, default=0, metavar="N", help="processes that draw; 0 draws in this one (0)"
    )
    add_json(command)
    command.set_defaults(run=run_make)

    command = kinds.add_parser(
        "tower",
        help="pretrain the vision tower, with projector and words",
        description="Writes WORKDIR/model, a checkpoint to begin training with. Stopped at any moment, the same "
        "command goes on where WORKDIR was saved.",
    )
    command.add_argument("workdir", type=local_path, metavar="WORKDIR")
    command.add_argument("--steps", type=int, default=TowerTraining.steps, metavar="N", help="optimizer steps (3600)")
    command.add_argument(
        "--whole-steps",
        type=int,
        default=TowerTraining.whole_steps,
        metavar="N",
        help="of these, the last ones, with whole pictures instead of windows (400)",
    )
    command.add_argument(
        "--batch-size", type=int, default=TowerTraining.batch_size, metavar="N", help="windows of pictures a step (18)"
    )
    command.set_defaults(run=run_tower)


def run_make(args: argparse.Namespace) -> int:
    """Returns the exit status; bad input is raised as InputError."""
    from dynllava_jax.demo.dataset import Mixture, write

    if args.samples < 1:
        raise InputError(f"--samples must be 1 or more, not {args.samples}.")
    for name in ("workers", "seed"):
        if getattr(args, name) < 0:
            raise InputError(f"--{name} must be 0 or more, not {getattr(args, name)}.")
    mixture = Mixture(args.turns, args.descriptions)
    with Progress("drawing", "picture") as progress:
        progress.start(args.samples)
        file = write(args.folder, args.split, args.samples, mixture, args.seed, progress.advance, workers=args.workers)
    if args.json is None:
        print(f"{file}: {args.samples} pictures, images in {args.folder}")
    else:
        write_json(args.json, [{"file": str(file), "samples": args.samples, **dataclasses.asdict(mixture)}])
    return 0


def run_tower(args: argparse.Namespace) -> int:
    """Returns the exit status; bad input is raised as InputError."""
    from dynllava_jax.config.presets import demo
    from dynllava_jax.demo.initial import write_initial
    from dynllava_jax.demo.tower import TowerTraining, learned, saved_steps, train

    for name in ("steps", "batch_size"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name.replace('_', '-')} must be 1 or more, not {getattr(args, name)}.")
    if args.whole_steps < 0:
        raise InputError(f"--whole-steps must be 0 or more, not {args.whole_steps}.")
    make_folder("WORKDIR", args.workdir)
    training = TowerTraining(steps=args.steps, whole_steps=args.whole_steps, batch_size=args.batch_size)
    config, dst = demo(), args.workdir / "model"
    saved, changed = saved_steps(args.workdir)
    # A state that was saved after the checkpoint is of a longer training, stopped before it could write its own.
    if dst.exists() and (saved is None or (saved >= args.steps and changed <= dst.stat().st_mtime_ns)):
        print(f"{dst} is there already" + (f", after {saved} steps" if saved else ""))
        return 0
    state = train(config, training, args.workdir, _tell)
    if dst.exists():
        shutil.rmtree(dst)
    write_initial(dst, config, learned(config, training, state))
    print(f"{dst}: tower, projector and words after {state.step} steps, everything else from a seed")
    return 0


def _tell(step: int, metrics: dict[str, float]) -> None:
    right = ", ".join(f"{name[:-6]} {value:.3f}" for name, value in metrics.items() if name.endswith("_right"))
    print(f"step {step}: patches named rightly: {right}", flush=True)
