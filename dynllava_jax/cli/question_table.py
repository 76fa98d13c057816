"""Tables of multiple-choice questions, their pictures within: MMBench's, and VLMEvalKit's of the same form."""

import base64
import csv
import itertools
import re
import string
from collections.abc import Iterator, Mapping
from typing import Any

from dynllava_jax.errors import InputError, shown

_NEEDED = ("index", "question", "image")
_EMPTY = ("", "NA", "N/A", "n/a", "NULL", "null", "<NA>", "#N/A", "#N/A N/A", "#NA")
_NO_NUMBER = ("nan", "none", "-nan", "1.#ind", "-1.#ind", "1.#qnan", "-1.#qnan")
"""In any case of letters. Together what pandas, with which LLaVA's script reads, and that script take for empty."""


def is_table(text: str) -> bool:
    """Whether a file's first line is a row of titles with tabs between them, and no JSON."""
    titles = text[: text.find("\n")]
    return "\t" in titles and not titles.lstrip().startswith(("{", "["))


def read_table(text: str) -> Iterator[tuple[str, Any]]:
    """Where each row stands, and what it asks in the keys of a question file, an InputError where a row is wrong.

    A question is the hint, the question and the options, a line each, as `llava/eval/model_vqa_mmbench.py` asks it. A
    picture may be named by the index of a row that has the same.

    Raises:
        InputError: a column is missing, or a cell's quotation marks are not closed.
    """
    before = csv.field_size_limit(len(text))  # a picture is longer than what the module takes for a cell
    lines = (line.group() for line in re.finditer(r"[^\n]+\n?|\n", text))  # a StringIO takes four bytes a letter
    try:
        titles, *rows = csv.reader(lines, delimiter="\t", strict=True)
    except csv.Error as error:
        raise InputError(f"is no table: {error}.") from error
    finally:
        csv.field_size_limit(before)
    if missing := [title for title in _NEEDED if title not in titles]:
        raise InputError(f"is a table without the column {missing[0]}; {', '.join(_NEEDED)} are needed.")
    index, image = titles.index("index"), titles.index("image")
    pictures = {row[index]: row[image] for row in rows if len(row) == len(titles)}
    for number, row in enumerate(rows, 1):
        where = f"row {number}"
        if len(row) != len(titles):
            if row:
                yield where, InputError(f"has {len(row)} cells, where the first line has {len(titles)}.")
            continue
        try:
            yield where, _asked(dict(zip(titles, row, strict=True)), pictures)
        except InputError as error:
            yield where, error


def _asked(row: Mapping[str, str], pictures: Mapping[str, str]) -> dict[str, Any]:
    lettered = [letter for letter in string.ascii_uppercase if letter in row]
    options = list(itertools.takewhile(_is_there, (row[letter] for letter in lettered)))
    letters = lettered[: len(options)]
    hint = row.get("hint", "")
    text = [hint] if _is_there(hint) else []
    text += [row["question"], *(f"{letter}. {option}" for letter, option in zip(letters, options, strict=True))]
    asked: dict[str, Any] = {
        "question_id": int(row["index"]) if row["index"].isdecimal() else row["index"],
        "text": "\n".join(text),
    }
    if options:
        asked |= {"options": options, "option_char": letters}
    if _is_there(row["image"]):
        asked["image"] = _picture(pictures.get(row["image"], row["image"]))
    return asked


def _is_there(cell: str) -> bool:
    return cell not in _EMPTY and cell.lower() not in _NO_NUMBER


def _picture(cell: str) -> bytes:
    try:
        return base64.b64decode(cell, validate=True)
    except ValueError:
        raise InputError(f"has a picture that is no base64: {shown(cell)}.") from None
