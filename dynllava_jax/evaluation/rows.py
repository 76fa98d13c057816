"""What a model answered, question by question, in a file that a stopped run goes on with."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dynllava_jax.errors import InputError
from dynllava_jax.evaluation.tasks import Question
from dynllava_jax.inference.assistant import Assistant
from dynllava_jax.inference.request import Answer, Request

_CHUNK = 16
_MOST_TOKENS = 16

Row = dict[str, Any]


def answers(
    assistant: Assistant,
    questions: Sequence[Question],
    file: Path | None,
    progress: Callable[[int], None] = lambda count: None,
    *,
    dense: bool = False,
) -> list[str]:
    """The answers, greedy; see `collect`."""
    rows = collect(lambda: assistant, questions, file, progress, dense=dense)
    return [row["text"] for row in rows]


def collect(
    load: Callable[[], Assistant],
    questions: Sequence[Question],
    file: Path | None,
    progress: Callable[[int], None] = lambda count: None,
    *,
    dense: bool = False,
    most: int = _MOST_TOKENS,
    note: Callable[[Answer], Row] = lambda answer: {},
) -> list[Row]:
    """A row for each question: id, kind, wanted answer, text, and what `note` adds.

    Rows in `file` are not asked for again, and new ones are appended to it. The file is only for one model and one
    list of questions: that is its name's business.

    Args:
        load: gives the model; called only when something has to be asked.
        questions: what is asked, greedily.
        file: JSON lines; None: nothing is kept.
        progress: is told how many rows there are more.
        dense: drop nothing.
        most: tokens of an answer.
        note: what of an answer to keep besides its text.

    Raises:
        InputError: the file holds answers to other questions, or cannot be written.
    """
    known = {} if file is None or not file.is_file() else _read(file)
    if strange := [id for id in known if id not in {question.id for question in questions}]:
        raise InputError(f"{file} has an answer to {strange[0]}, which is not asked; remove it or name another folder.")
    progress(len(known))
    missing = [question for question in questions if question.id not in known]
    for first in range(0, len(missing), _CHUNK):
        chunk = missing[first : first + _CHUNK]
        requests = [Request(question.text, [question.picture], most) for question in chunk]
        rows = []
        for question, answer in zip(chunk, load().generate_batch(requests, dense=dense), strict=True):
            if isinstance(answer, InputError):
                raise answer
            row = {"id": question.id, "kind": question.kind, "wanted": question.answer, "text": answer.text}
            rows.append(row | note(answer))
            known[question.id] = rows[-1]
        if file is not None:
            _append(file, rows)
        progress(len(chunk))
    return [known[question.id] for question in questions]


def _read(file: Path) -> dict[str, Row]:
    """A last line that a stopped run left half-written does not count."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        rows = [json.loads(line) for line in whole]
        for number, row in enumerate(rows, 1):
            if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("id", "text")):
                raise ValueError(f"line {number} has no id or no text")
        if len(whole) < len(lines):
            file.write_text("".join(whole), encoding="utf-8")
        return {row["id"]: row for row in rows}
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} is damaged: {error}; remove it.") from None


def _append(file: Path, rows: Sequence[Row]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("a") as out:
            out.writelines(json.dumps(row) + "\n" for row in rows)
    except OSError as error:
        raise InputError(f"{file} cannot be written: {error.strerror or error}.") from error
