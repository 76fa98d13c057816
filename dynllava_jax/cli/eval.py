"""`dynllava eval`: how well a model answers."""

import argparse
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynllava_jax.cli.model_options import add_model_options, load_model
from dynllava_jax.cli.output import add_json, write_json
from dynllava_jax.cli.progress import Progress
from dynllava_jax.errors import InputError

if TYPE_CHECKING:
    from dynllava_jax.evaluation.metrics import Interval


def add_parser(subparsers: Any) -> None:
    """Adds `eval demo`; the parsed namespace's `run` does the work."""
    parser = subparsers.add_parser("eval", help="measure how well a model answers")
    kinds = parser.add_subparsers(dest="kind", required=True)
    command = kinds.add_parser(
        "demo",
        help="held-out questions about the demo's scenes",
        description="Greedy answers, exact match for each kind of question with a 95 %% bootstrap interval, beside "
        "what the same model gets when another picture is shown (blind).",
    )
    add_model_options(command)
    command.add_argument("--questions", type=int, default=1000, metavar="N", help="how many (1000)")
    command.add_argument("--no-blind", action="store_true", help="leave the blind baseline out")
    command.add_argument("--rows", type=Path, metavar="DIR", help="keep every answer here; a stopped run goes on")
    add_json(command)
    command.set_defaults(run=run_demo)


def run_demo(args: argparse.Namespace) -> int:
    """Returns the exit status; bad input is raised as InputError."""
    import numpy as np

    from dynllava_jax.evaluation.metrics import exact, share
    from dynllava_jax.evaluation.rows import answers
    from dynllava_jax.evaluation.tasks import questions

    if args.questions < 9:
        raise InputError(f"--questions must be at least 9, one of each kind, not {args.questions}.")
    assistant = load_model(args)
    results: dict[str, dict[str, Interval]] = {}
    for way in ("seen",) if args.no_blind else ("seen", "blind"):
        asked = questions(args.questions, blind=way == "blind")
        file = None if args.rows is None else args.rows / f"{_name(args)}-{way}-{args.questions}.jsonl"
        with Progress(way, "question") as progress:
            progress.start(len(asked))
            given = answers(assistant, asked, file, progress.advance, dense=args.dense)
        right = np.array([exact(text, question.answer) for text, question in zip(given, asked, strict=True)])
        kind = np.array([question.kind for question in asked])
        results[way] = {name: share(right[kind == name]) for name in sorted(set(kind))} | {"all": share(right)}
    if args.json is None:
        print("\n".join(_table(results)))
    else:
        write_json(args.json, [{"model": str(args.model), "questions": args.questions, "exact_match": results}])
    return 0


def _table(results: "dict[str, dict[str, Interval]]") -> list[str]:
    lines = [f"{'kind':<12}" + "".join(f"{way:>24}" for way in results)]
    for name in next(iter(results.values())):
        lines.append(f"{name:<12}" + "".join(f"{found[name]!s:>24}" for found in results.values()))
    return lines


def _name(args: argparse.Namespace) -> str:
    """A file name for the model and all options that change its answers."""
    from dynllava_jax.checkpoint.source import open_source

    # Other weights at the same place must not find these answers.
    weights = open_source(args.model).content_hash if Path(args.model).exists() else args.model
    options = (weights, args.keep_rate, args.output_keep, args.selector, args.dense, args.dtype, args.conv_template)
    return f"{Path(args.model).name}-{hashlib.sha256(repr(options).encode()).hexdigest()[:8]}"
