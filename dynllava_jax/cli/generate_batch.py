"""`dynllava generate --batch`: a file of requests, ours or LLaVA's questions, answered in its order as it goes."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dynllava_jax.cli.local_path import local_path
from dynllava_jax.cli.model_options import load_model, sampler
from dynllava_jax.cli.output import append_json, write_json
from dynllava_jax.cli.pictures import image_source, warn_of_foreign
from dynllava_jax.errors import InputError, shown
from dynllava_jax.progress import Progress

_ROWS = 16
_BATCHES = 8
"""Batches whose answers are written together; requests of similar length among them share one."""
_WISHES = ("max_new_tokens", "temperature", "top_p", "top_k", "seed")
_REPEATED = ("question_id", "category")
"""Keys of LLaVA's question files that stand in the answer again."""
_KEYS = ("image", "images", "question", "text", *_WISHES, *_REPEATED)
_HANDED_OVER = ("/dev", "/dev/fd", "/proc/self/fd")
"""Where /dev/stdin and `<(command)` lie; no pictures lie beside them."""


@dataclasses.dataclass(frozen=True)
class _Line:
    """One line of the file: what it asks, or what is wrong with it, and what its answer repeats."""

    request: Any
    repeated: Mapping[str, Any]


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--batch",
        type=local_path,
        metavar="FILE.jsonl",
        help="one request a line: image(s), question…; or LLaVA's question files (text, question_id)",
    )
    parser.add_argument(
        "--image-folder",
        type=local_path,
        metavar="DIR",
        help="with --batch: where its pictures lie (beside it)",
    )
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
    if args.goes_on or args.image_folder is not None or args.rows is not None:
        raise InputError("--continue, --image-folder and --rows belong to --batch FILE.jsonl, which is missing.")


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
    lines = _read_lines(args, _beside(args.batch) if folder is None else folder)
    where = args.json or "-"
    held = _held(Path(where), lines, args.batch) if args.goes_on else []
    failed = [record["error"] for record in held if "error" in record]
    if len(held) < len(lines):
        failed += _answer_all(args, lines, where, len(held))
    if failed:
        raise InputError(
            f"--batch {args.batch}: {len(failed)} of {len(lines)} requests were bad (an error in each one's place); "
            f"the first: {failed[0]}"
        )
    return 0


def _answer_all(args: argparse.Namespace, lines: Sequence[_Line], where: str, held: int) -> list[str]:
    """Writes the answers to all but the first `held` lines; returns what was wrong with some of these."""
    from dynllava_jax.inference.buckets import Buckets

    rows = _ROWS if args.rows is None else args.rows
    assistant = load_model(args, buckets=Buckets(rows=(*(fewer for fewer in (1, 4) if fewer < rows), rows)))
    if not held:
        write_json(where, [])
    failed, warned = [], False
    with Progress("answers", "answer") as progress:
        progress.start(len(lines), held)
        try:
            while held < len(lines):
                window = lines[held : held + _BATCHES * rows]
                answered = list(zip(window, _answers(assistant, window, args, progress), strict=True))
                read = [line.request for line, answer in answered if not isinstance(answer, InputError)]
                warned = warned or warn_of_foreign(assistant, [image for request in read for image in request.images])
                records = [_record(line, answer) for line, answer in answered]
                append_json(where, records)
                held += len(records)
                failed += [record["error"] for record in records if "error" in record]
        except KeyboardInterrupt:
            if where != "-":
                here = f"{where} holds the first {held} of {len(lines)} answers"
                print(f"dynllava: {here}; --continue goes on from there", file=sys.stderr)
            raise
    return failed


def _answers(assistant: Any, window: Sequence[_Line], args: argparse.Namespace, progress: Progress) -> list[Any]:
    """An Answer, or what was wrong, for each line."""
    asked = [line.request for line in window if not isinstance(line.request, InputError)]
    progress.advance(len(window) - len(asked))
    given = iter(
        assistant.generate_batch(asked, dense=args.dense, use_cache=not args.no_cache, progress=progress.advance)
    )
    return [line.request if isinstance(line.request, InputError) else next(given) for line in window]


def _record(line: _Line, answer: Any) -> dict[str, Any]:
    """With the keys that LLaVA's scoring scripts read, where the line has its own."""
    content = {"error": str(answer)} if isinstance(answer, InputError) else answer.as_dict()
    return {**line.repeated, **content}


def _read_lines(args: argparse.Namespace, folder: Path) -> list[_Line]:
    try:
        texts = args.batch.read_text(encoding="utf-8-sig").split("\n")  # a JSON string may hold other line separators
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--batch {args.batch} cannot be read: {error}") from error
    lines: list[_Line] = []
    for number, text in enumerate(texts, 1):
        if text.strip():
            repeated: dict[str, Any] = {}
            try:
                request = _request(text, args, folder, repeated)
            except InputError as error:
                request = InputError(f"{args.batch} line {number}: {error}")
            lines.append(_Line(request, repeated))
    if not lines:
        raise InputError(f"--batch {args.batch} holds no request.")
    return lines


def _request(text: str, args: argparse.Namespace, folder: Path, repeated: dict[str, Any]) -> Any:
    """What one line asks; `repeated` takes up what its answer says again."""
    from dynllava_jax.inference.request import Request

    try:
        asked = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is no JSON: {error}.") from error
    if not isinstance(asked, Mapping):
        raise InputError("needs an object with a question.")
    repeated.update({key: asked[key] for key in _REPEATED if key in asked})
    if "question" in asked and "text" in asked:
        raise InputError("has both question and text; give one of them.")
    question = asked.get("question", asked.get("text"))
    if not isinstance(question, str):
        raise InputError("needs an object with a question.")
    if "question_id" in asked:
        repeated["prompt"] = question
    if unknown := sorted(set(asked) - set(_KEYS)):
        raise InputError(f"has the unknown key {unknown[0]!r}; keys are {', '.join(_KEYS)}.")
    if "image" in asked and "images" in asked:
        raise InputError("has both image and images; give one of them.")
    images = asked.get("images", [asked["image"]] if "image" in asked else [])
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise InputError("images must be a list of paths or addresses.")
    wishes = {key: getattr(args, key) if asked.get(key) is None else asked[key] for key in _WISHES}
    _check_numbers(wishes)
    return Request(
        question,
        [_relative(image, folder) for image in images],
        wishes["max_new_tokens"],
        _sampler(wishes),
        wishes["seed"],
    )


def _sampler(wishes: Mapping[str, Any]) -> Any:
    try:
        return sampler(wishes["temperature"], wishes["top_p"], wishes["top_k"])
    except InputError as error:  # it names our fields, which are the keys' last letters
        raise InputError(f"temperature, top_p or top_k: {error}") from None


def _check_numbers(wishes: Mapping[str, Any]) -> None:
    for key, value in wishes.items():
        whole = key in ("max_new_tokens", "top_k", "seed")
        fits = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
        if value is not None and not fits:
            raise InputError(f"{key} must be a{' whole' if whole else ''} number, not {shown(value)}.")


def _beside(batch: Path) -> Path:
    """Where relative pictures lie: beside the file; of what a shell hands over, in the current folder."""
    return Path() if str(batch.parent) in _HANDED_OVER else batch.parent


def _relative(image: str, folder: Path) -> str | Path:
    if image.startswith(("sample:", "http://", "https://")):
        return image_source(image)
    return folder / image


def _held(file: Path, lines: Sequence[_Line], batch: Path) -> list[Mapping[str, Any]]:
    """The answers that the file holds, without a last line that was written in part.

    Raises:
        InputError: they are no answers, or answer other questions.
    """
    if not file.exists():
        return []
    remedy = "remove it, or name another file"
    try:
        texts = file.read_bytes().splitlines(keepends=True) if file.is_file() else [b"no file\n"]
        whole = [text for text in texts if text.endswith(b"\n")]
        held = [json.loads(text) for text in whole]
        if not all(isinstance(record, Mapping) and {"text", "error"} & record.keys() for record in held):
            raise ValueError("a line has neither text nor error")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"--json {file} does not hold answers to go on from: {error}; {remedy}.") from None
    if len(held) > len(lines):
        raise InputError(f"--json {file} holds {len(held)} answers, --batch {batch} {len(lines)} questions; {remedy}.")
    for number, (record, line) in enumerate(zip(held, lines, strict=False), 1):
        for key in (*_REPEATED, "prompt"):
            if record.get(key) != line.repeated.get(key):
                raise InputError(
                    f"--json {file} line {number} answers {key} {shown(record.get(key))}, where --batch {batch} asks "
                    f"{shown(line.repeated.get(key))}; {remedy}."
                )
    if len(whole) < len(texts):
        file.write_bytes(b"".join(whole))
    return held
