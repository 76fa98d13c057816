"""What a file of requests asks: JSON lines of ours, or the questions of benchmarks in the forms that LLaVA reads."""

import argparse
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dynllava_jax.cli.model_options import sampler
from dynllava_jax.cli.pictures import image_source
from dynllava_jax.cli.question_table import is_table, read_table
from dynllava_jax.errors import InputError, shown

_WISHES = ("max_new_tokens", "temperature", "top_p", "top_k", "seed")
_REPEATED = ("question_id", "category", "options", "option_char")
"""Keys of LLaVA's question files, and of its answers to MMBench, that stand in the answer again."""
_KEYS = ("image", "images", "question", "text", *_WISHES, *_REPEATED)
_HANDED_OVER = ("/dev", "/dev/fd", "/proc/self/fd")
"""Where /dev/stdin and `<(command)` lie; no pictures lie beside them."""


@dataclasses.dataclass(frozen=True)
class Line:
    """One request: what it asks, or what is wrong with it, and what its answer repeats."""

    request: Any
    repeated: Mapping[str, Any]


def read_lines(file: Path, folder: Path | None, args: argparse.Namespace) -> list[Line]:
    """All requests of a file.

    Args:
        file: a request a line, one list of samples as LLaVA's ScienceQA has them, or a table as MMBench's.
        folder: where its pictures lie; None: beside it.
        args: what a request does not say itself, and `suffix`.

    Raises:
        InputError: the file cannot be read, or holds no request.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--batch {file} cannot be read: {error}") from error
    folder = _beside(file) if folder is None else folder
    lines = []
    for where, read in _records(text, file):
        repeated: dict[str, Any] = {}
        try:
            request = _request(read, args, folder, repeated)
        except InputError as error:
            request = InputError(f"{file} {where}: {error}")
        lines.append(Line(request, repeated))
    if not lines:
        raise InputError(f"--batch {file} holds no request.")
    return lines


def _records(text: str, file: Path) -> Iterator[tuple[str, Any]]:
    """Where each request stands, and what stands there, an InputError where it cannot be read."""
    if is_table(text):
        try:
            yield from read_table(text)
        except InputError as error:
            raise InputError(f"--batch {file} {error}") from error
        return
    if text.lstrip().startswith("["):
        try:
            yield from ((f"sample {number}", sample) for number, sample in enumerate(json.loads(text), 1))
        except (ValueError, RecursionError) as error:
            raise InputError(f"--batch {file} is no JSON: {error}.") from error
        return
    for number, line in enumerate(text.split("\n"), 1):  # a JSON string may hold other line separators
        if line.strip():
            try:
                yield f"line {number}", json.loads(line)
            except (ValueError, RecursionError) as error:
                yield f"line {number}", InputError(f"is no JSON: {error}.")


def _request(asked: Any, args: argparse.Namespace, folder: Path, repeated: dict[str, Any]) -> Any:
    """What one record asks; `repeated` takes up what its answer says again."""
    from dynllava_jax.inference.request import Request

    if isinstance(asked, InputError):
        raise asked
    if not isinstance(asked, Mapping):
        raise InputError("needs an object with a question.")
    if "conversations" in asked:
        asked = _first_turn(asked)
    repeated.update({key: asked[key] for key in _REPEATED if key in asked})
    if "question" in asked and "text" in asked:
        raise InputError("has both question and text; give one of them.")
    question = asked.get("question", asked.get("text"))
    if not isinstance(question, str):
        raise InputError("needs an object with a question.")
    if args.suffix is not None:
        question = f"{question}\n{args.suffix}"
    if "question_id" in asked:
        repeated["prompt"] = question
    if unknown := sorted(set(asked) - set(_KEYS)):
        raise InputError(f"has the unknown key {unknown[0]!r}; keys are {', '.join(_KEYS)}.")
    if "image" in asked and "images" in asked:
        raise InputError("has both image and images; give one of them.")
    images = asked.get("images", [asked["image"]] if "image" in asked else [])
    if not isinstance(images, list) or not all(isinstance(image, (str, bytes)) for image in images):
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


def _first_turn(sample: Mapping[str, Any]) -> dict[str, Any]:
    """What LLaVA's `model_vqa_science.py` asks of a sample: its first turn, after the picture."""
    try:
        question = sample["conversations"][0]["value"].replace("<image>", "").strip()
        asked = {"question_id": sample["id"], "text": question}
    except (LookupError, TypeError, AttributeError):
        raise InputError("needs an id, and conversations that begin with a text.") from None
    if "image" in sample:
        asked |= {"image": sample["image"], "text": f"<image>\n{question}"}
    return asked


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


def _relative(image: str | bytes, folder: Path) -> str | bytes | Path:
    if isinstance(image, bytes):  # of a table, which holds the pictures themselves
        return image
    if image.startswith(("sample:", "http://", "https://")):
        return image_source(image)
    return folder / image


def read_held(file: Path, lines: Sequence[Line], batch: Path) -> list[Mapping[str, Any]]:
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
