"""`dynllava plan`: does a run fit on a machine, and what does it cost? Compiled, never run."""

import argparse
import dataclasses
import sys
from typing import Any

from dynllava_jax.cli.local_path import local_path
from dynllava_jax.cli.output import add_json, check_file, write_file, write_json
from dynllava_jax.errors import InputError

_EXCLUDES = {
    "generate": ("largest_batch", "sweep", "samples", "remat", "mfu"),
    "sweep": ("largest_batch", "mesh", "remat"),
}
"""Options by those that they would make ineffective."""
_MFU = 0.4


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "plan",
        help="know before renting whether a run fits, and what it costs",
        description="Compiles the real training step, or prefill and decode, for a machine that need not be there, and "
        "tells memory, FLOPs, what travels between devices and the least time. Exit status 1: it does not fit.",
        epilog="--config.KEY=VALUE changes a key of the config: --config.mesh=fsdp=8 --config.global_batch_size=128.",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help="a file of configs/, or your own")
    parser.add_argument(
        "--topology", required=True, metavar="NAME", help="such as v5e:8x8, v5litepod-64, v5p-32, a100:1x8, h200:4x8"
    )
    parser.add_argument("--mesh", metavar="SPEC", help="such as data=4,fsdp=8; in place of the config's")
    parser.add_argument("--remat", choices=("full", "dots", "none"), help="in place of the config's")
    parser.add_argument("--images", type=int, default=1, metavar="M", help="of each sample (1)")
    parser.add_argument("--largest-batch", action="store_true", help="look for the largest batch that fits")
    parser.add_argument("--sweep", action="store_true", help="try mesh shapes and remat policies, and rank them")
    parser.add_argument("--samples", type=int, default=0, metavar="N", help="of an epoch: steps, hours and chip-hours")
    parser.add_argument(
        "--mfu", type=float, metavar="SHARE", help=f"model FLOP/s utilisation to suppose for it and for data ({_MFU})"
    )
    parser.add_argument(
        "--generate", metavar="ROWS,PROMPT,ANSWER", help="plan answers instead: requests, prompt and answer tokens"
    )
    parser.add_argument(
        "--dense", action="store_true", help="with --generate: nothing is dropped, by a model without predictors"
    )
    parser.add_argument("--picture", type=local_path, metavar="FILE.svg", help="memory by mesh")
    add_json(parser)
    parser.set_defaults(run=run, overrides=())


def run(args: argparse.Namespace) -> int:
    from dynllava_jax.config.experiment import read_experiment
    from dynllava_jax.planning import table
    from dynllava_jax.planning.child import ask
    from dynllava_jax.planning.machine import machine
    from dynllava_jax.planning.request import Request
    from dynllava_jax.training.setup import preset_model

    _refuse_what_is_ignored(args)
    mfu = _MFU if args.mfu is None else args.mfu
    if not 0 < mfu <= 1:
        raise InputError(f"--mfu {mfu} must be above 0 and at most 1.")
    for name, value in (("--samples", args.samples), ("--images", args.images)):
        if value < 0:
            raise InputError(f"{name} {value} must not be negative.")
    if args.picture is not None:
        check_file("--picture", args.picture, (".svg",))
    # A plan reads neither data nor weights.
    given = ("--config.data.source=unread", "--config.init.checkpoint=unread")
    config = read_experiment(args.config, (*given, *args.overrides))
    if args.mesh is not None:
        config = dataclasses.replace(config, mesh=args.mesh)
    if args.remat is not None:
        config = dataclasses.replace(config, remat=args.remat)
    machine(args.topology)
    request = Request(
        config=config,
        topology=args.topology,
        images=args.images,
        answers=None if args.generate is None else _shape(args.generate, preset_model(config), args.images, args.dense),
        dense=args.dense,
        largest=args.largest_batch,
        sweep=args.sweep,
        samples=args.samples,
        mfu=mfu,
        recipe_batch=read_experiment(args.config).global_batch_size,
    )
    reports = list(ask(request, _tell))
    if args.picture is not None:
        write_file("--picture", args.picture, table.picture(reports).encode())
    if args.json is not None:
        write_json(args.json, reports)
    if args.json != "-":
        found = table.ranking(reports) if args.sweep else (line for report in reports for line in table.lines(report))
        print("\n".join(found))
    best = reports[:1] if args.sweep else reports
    return 0 if all(report["fits"] for report in best) else 1


def _refuse_what_is_ignored(args: argparse.Namespace) -> None:
    """Raises InputError for options that do not go together: one of them would have no effect."""
    given = {name for name, value in vars(args).items() if value not in (None, False, 0)}
    if args.dense and args.generate is None:
        raise InputError("--dense needs --generate: a step is always planned as it is trained.")
    for option, others in _EXCLUDES.items():
        if option in given and (wrong := [other for other in others if other in given]):
            spelled = [f"--{name.replace('_', '-')}" for name in (option, wrong[0])]
            raise InputError(f"{spelled[0]} does not go with {spelled[1]}; leave one of them out.")


def _shape(text: str, model: Any, images: int, dense: bool) -> Any:
    from dynllava_jax.inference.buckets import Shape

    try:
        rows, prompt, answer = map(int, text.split(","))
    except ValueError:
        raise InputError(f"--generate {text} is not ROWS,PROMPT,ANSWER, such as 8,768,2048.") from None
    if min(rows, prompt, answer) < 1:
        raise InputError(f"--generate {text}: each of the three must be 1 or more.")
    if prompt < images * model.image_tokens:
        raise InputError(f"--generate {text}: a prompt has {images} x {model.image_tokens} image tokens at least.")
    dropped = 0 if dense else images * (model.image_tokens - model.kept_image_tokens)
    return Shape(rows, images, prompt, prompt - dropped, answer)


def _tell(line: str) -> None:
    if sys.stderr.isatty():
        print(f"dynllava: compiling {line}", file=sys.stderr, flush=True)
