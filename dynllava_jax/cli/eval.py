"""`dynllava eval`: how well a model answers."""

import argparse
import dataclasses
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynllava_jax.cli.local_path import local_path
from dynllava_jax.cli.model_options import add_model_options, load_model
from dynllava_jax.cli.output import add_json, make_folder, write_file, write_json
from dynllava_jax.errors import InputError
from dynllava_jax.progress import Progress

if TYPE_CHECKING:
    from dynllava_jax.evaluation.metrics import Interval


_ONLY_ALL = ("descriptions", "scenes", "out")


def add_parser(subparsers: Any) -> None:
    """Adds `eval demo`; the parsed namespace's `run` does the work."""
    parser = subparsers.add_parser("eval", help="measure how well a model answers")
    kinds = parser.add_subparsers(dest="kind", required=True)
    command = kinds.add_parser(
        "demo",
        help="held-out questions about the demo's scenes",
        description="Greedy answers, exact match for each kind of question with a 95 % bootstrap interval, beside "
        "what the same model gets when another picture is shown (blind).",
    )
    add_model_options(command)
    command.add_argument("--questions", type=int, default=1000, metavar="N", help="how many (1000)")
    command.add_argument("--no-blind", action="store_true", help="leave the blind baseline out")
    command.add_argument("--rows", type=local_path, metavar="DIR", help="keep every answer here; a stopped run goes on")
    command.add_argument("--all", action="store_true", help="the whole comparison, as a page of tables and diagrams")
    command.add_argument(
        "--models", type=local_path, metavar="DIR", help="with --all: checkpoints by name (base, control, …)"
    )
    command.add_argument("--descriptions", type=int, metavar="N", help="with --all: long answers (100)")
    command.add_argument("--scenes", type=int, metavar="N", help="with --all: whose kept tokens count (100)")
    command.add_argument("--out", type=local_path, metavar="FILE", help="with --all: the page (evidence.md)")
    add_json(command)
    command.set_defaults(run=run_demo)


def run_demo(args: argparse.Namespace) -> int:
    """Returns the exit status; bad input is raised as InputError."""
    import numpy as np

    from dynllava_jax.evaluation.evidence import accuracy
    from dynllava_jax.evaluation.metrics import exact
    from dynllava_jax.evaluation.rows import answers
    from dynllava_jax.evaluation.tasks import questions

    if args.questions < 9:
        raise InputError(f"--questions must be at least 9, one of each kind, not {args.questions}.")
    if args.all:
        return _run_all(args)
    if args.models is not None:
        raise InputError("--models is for --all; name one model with --model.")
    for option in _ONLY_ALL:
        if getattr(args, option) is not None:
            raise InputError(f"--{option} is for --all and would have no effect; drop it, or add --all.")
    if args.rows is not None:
        make_folder("--rows", args.rows)
    assistant = load_model(args)
    results: dict[str, dict[str, Interval]] = {}
    for way in ("seen",) if args.no_blind else ("seen", "blind"):
        asked = questions(args.questions, blind=way == "blind")
        file = None if args.rows is None else args.rows / f"{_name(args)}-{way}-{args.questions}.jsonl"
        with Progress(way, "question") as progress:
            progress.start(len(asked))
            given = answers(assistant, asked, file, progress.advance, dense=args.dense)
        right = np.array([exact(text, question.answer) for text, question in zip(given, asked, strict=True)])
        results[way] = accuracy(right)
    if args.json is None:
        print("\n".join(_table(results)))
    else:
        write_json(args.json, [{"model": str(args.model), "questions": args.questions, "exact_match": results}])
    return 0


def _run_all(args: argparse.Namespace) -> int:
    from dynllava_jax.evaluation.evidence import Sizes, every_row, gather
    from dynllava_jax.evaluation.figures import write_figures
    from dynllava_jax.evaluation.report import page
    from dynllava_jax.evaluation.settings import ABLATIONS, LANGUAGE, VISION
    from dynllava_jax.evaluation.subject import Place
    from dynllava_jax.viz.figure import new_figure

    _check_all(args)
    out, sizes = args.out or Path("evidence.md"), Sizes(args.questions, args.descriptions or 100, args.scenes or 100)
    new_figure(1.0, 1.0)  # matplotlib is missed now, not after hours
    make_folder("--out", out.parent)
    if out.is_dir():
        raise InputError(f"--out {out} cannot be written: it is a folder.")
    rows = args.rows or args.models / "rows"
    make_folder("--rows", rows)
    place = Place(args.models, rows, args.dtype, args.device)
    with Progress("evidence", "row") as progress:
        progress.start(len(VISION) + len(LANGUAGE) + len(ABLATIONS))
        evidence = gather(place, sizes, lambda table, row: progress.advance())
    figures = write_figures(evidence, place, out.parent / out.stem)
    command = "dynllava eval demo --all --models DIR" + "".join(
        f" --{field.name} {getattr(sizes, field.name)}" for field in dataclasses.fields(sizes)
    )
    command += f" --dtype {args.dtype}" if args.dtype else ""
    write_file("--out", out, page(evidence, command, figures).encode())
    ran = sum(row.missing is None for _, row in every_row(evidence))
    print(f"{out}: {ran} rows, {sum(1 for _ in every_row(evidence)) - ran} not run")
    return 0


def _check_all(args: argparse.Namespace) -> None:
    if args.models is None or not args.models.is_dir():
        raise InputError(
            f"--all needs --models, a folder of checkpoints by name (base, control, dynamic, …), not {args.models}."
        )
    for option in ("keep_rate", "selector", "dense", "mesh", "conv_template", "no_blind"):
        if getattr(args, option):
            raise InputError(
                f"--all runs its own settings, so --{option.replace('_', '-')} would have no effect; drop it."
            )
    if args.model != "demo":
        raise InputError("--all takes its models from the folder --models, so --model would have no effect; drop it.")
    if args.output_keep != "on":
        raise InputError("--all runs its own settings, so --output-keep would have no effect; drop it.")
    if args.json is not None:
        raise InputError("--all writes a page, the file --out, and no JSON; drop --json.")
    for option in ("descriptions", "scenes"):
        if getattr(args, option) is not None and getattr(args, option) < 1:
            raise InputError(f"--{option} must be 1 or more, not {getattr(args, option)}.")


def _table(results: "dict[str, dict[str, Interval]]") -> list[str]:
    lines = [f"{'kind':<12}" + "".join(f"{way:>24}" for way in results)]
    for name in next(iter(results.values())):
        lines.append(f"{name:<12}" + "".join(f"{found[name]!s:>24}" for found in results.values()))
    return lines


def _name(args: argparse.Namespace) -> str:
    """A file name for the model and all options that change its answers."""
    from dynllava_jax.checkpoint.source import open_source
    from dynllava_jax.demo import embedded

    # Other weights at the same place must not find these answers, nor the same ones that keep another share.
    source = open_source(embedded.CHECKPOINT if args.model == "demo" else args.model)
    options = (
        source.content_hash,
        source.config,
        args.keep_rate,
        args.output_keep,
        args.selector,
        args.dense,
        args.dtype,
        args.conv_template,
    )
    return f"{Path(args.model).name}-{hashlib.sha256(repr(options).encode()).hexdigest()[:8]}"
