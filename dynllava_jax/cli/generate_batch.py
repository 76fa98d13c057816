"""`dynllava generate --batch`: the requests of a file answered in its order, written as they come."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynllava_jax.cli.batch_file import Line, read_held, read_lines
from dynllava_jax.cli.local_path import local_path
from dynllava_jax.cli.model_options import load_model
from dynllava_jax.cli.output import json_lines
from dynllava_jax.cli.pictures import warn_of_foreign
from dynllava_jax.errors import InputError
from dynllava_jax.progress import Progress

_ROWS = 16
_BATCHES = 8
"""Batches whose answers are written together; requests of similar length among them share one."""


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch",
        type=local_path,
        metavar="FILE",
        help="JSON lines, a request each: image(s), question…; or LLaVA's benchmarks' questions, MMBench's table",
    )
    parser.add_argument(
        "--image-folder",
        type=local_path,
        metavar="DIR",
        help="with --batch: where its pictures lie (beside it)",
    )
    parser.add_argument("--suffix", metavar="TEXT", help="with --batch: a line to end every question with")
    parser.add_argument(
        "--rows",
        type=int,
        metavar="N",
        help=f"with --batch: requests computed at a time ({_ROWS})",
    )
    parser.add_argument(
        "--continue",
        dest="goes_on",
        action="store_true",
        help="with --batch and --json FILE: keep the answers that FILE holds, and ask for the others",
    )


def check_absent(args: argparse.Namespace) -> None:
    """Raises InputError for an option that means nothing without `--batch`."""
    given = {"--image-folder": args.image_folder, "--suffix": args.suffix, "--rows": args.rows}
    for option, value in (given | {"--continue": args.goes_on or None}).items():
        if value is not None:
            raise InputError(f"{option} belongs to --batch FILE, which is missing.")


def run(args: argparse.Namespace) -> int:
    """Returns 0; a bad line is raised as InputError once the others are answered."""
    if args.image or args.question or args.stream:
        raise InputError("--batch brings its own pictures and questions; drop --image, --question and --stream.")
    if args.rows is not None and args.rows < 1:
        raise InputError(f"--rows must be 1 or more, not {args.rows}.")
    if args.goes_on and args.json in (None, "-"):
        raise InputError("--continue needs --json FILE, the answers so far.")
    folder = args.image_folder
    if folder is not None and not folder.is_dir():
        raise InputError(f"--image-folder {folder} is no folder.")
    lines = read_lines(args.batch, folder, args)
    where = args.json or "-"
    held = read_held(Path(where), lines, args.batch) if args.goes_on else []
    failed = [record["error"] for record in held if "error" in record]
    if len(held) < len(lines):
        failed += _answer_all(args, lines, where, len(held))
    if failed:
        raise InputError(
            f"--batch {args.batch}: {len(failed)} of {len(lines)} requests were bad (an error in each one's place); "
            f"the first: {failed[0]}"
        )
    return 0


def _answer_all(args: argparse.Namespace, lines: Sequence[Line], where: str, held: int) -> list[str]:
    """Writes the answers to all but the first `held` lines; returns what was wrong with some of these."""
    from dynllava_jax.inference.buckets import Buckets

    rows = _ROWS if args.rows is None else args.rows
    assistant = load_model(args, buckets=Buckets(rows=(*(fewer for fewer in (1, 4) if fewer < rows), rows)))
    failed, warned = [], False
    with json_lines(where, keep=held > 0) as write, Progress("answers", "answer") as progress:
        progress.start(len(lines), held)
        try:
            while held < len(lines):
                window = lines[held : held + _BATCHES * rows]
                answered = list(zip(window, _answers(assistant, window, args, progress), strict=True))
                read = [line.request for line, answer in answered if not isinstance(answer, InputError)]
                warned = warned or warn_of_foreign(assistant, [image for request in read for image in request.images])
                records = [_record(line, answer) for line, answer in answered]
                write(records)
                held += len(records)
                failed += [record["error"] for record in records if "error" in record]
        except KeyboardInterrupt:
            if where != "-":
                here = f"{where} holds the first {held} of {len(lines)} answers"
                print(f"dynllava: {here}; --continue goes on from there", file=sys.stderr)
            raise
    return failed


def _answers(assistant: Any, window: Sequence[Line], args: argparse.Namespace, progress: Progress) -> list[Any]:
    """An Answer, or what was wrong, for each line."""
    asked = [line.request for line in window if not isinstance(line.request, InputError)]
    progress.advance(len(window) - len(asked))
    given = iter(
        assistant.generate_batch(asked, dense=args.dense, use_cache=not args.no_cache, progress=progress.advance)
    )
    return [line.request if isinstance(line.request, InputError) else next(given) for line in window]


def _record(line: Line, answer: Any) -> dict[str, Any]:
    """With the keys that LLaVA's scoring scripts read, where the line has its own."""
    content = {"error": str(answer)} if isinstance(answer, InputError) else answer.as_dict()
    return {**line.repeated, **content}
