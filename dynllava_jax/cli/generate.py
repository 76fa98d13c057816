"""`dynllava generate`: one question, or a file of them."""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dynllava_jax.cli.local_path import local_path
from dynllava_jax.cli.model_options import (
    add_answer_options,
    add_model_options,
    answer_options,
    load_model,
    read_pictures,
    sampler,
)
from dynllava_jax.cli.output import add_json, write_json
from dynllava_jax.errors import InputError, shown


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("generate", help="ask about pictures")
    parser.add_argument("--image", action="append", metavar="SOURCE", help="file, URL or sample:NAME; may be repeated")
    parser.add_argument("--question", metavar="TEXT", help="<image> marks where each picture stands")
    add_model_options(parser)
    add_answer_options(parser)
    parser.add_argument("--no-cache", action="store_true", help="run the whole sequence at every step")
    parser.add_argument("--stream", action="store_true", help="print the answer as it appears")
    parser.add_argument(
        "--batch", type=local_path, metavar="FILE.jsonl", help="one request a line: image(s), question…"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Returns 0; a bad line of `--batch` is raised as InputError once the others are answered."""
    if args.batch is not None:
        return _batch(args)
    if args.stream and args.json is not None:
        raise InputError("--stream and --json exclude each other: JSON stands alone on stdout.")
    images, question = asked(args)
    options = answer_options(args) | {"dense": args.dense, "use_cache": not args.no_cache}
    pictures = read_pictures(images)
    assistant = load_model(args)
    if args.stream:
        stream = assistant.stream(pictures, question, **options)
        warn_of_foreign(assistant, images)
        for piece in stream:
            print(piece, end="", flush=True)
        print()
        return 0
    answer = assistant.generate(pictures, question, **options)
    warn_of_foreign(assistant, images)
    if args.json is not None:
        write_json(args.json, [answer.as_dict()])
        return 0
    print(answer.text)
    print(_summary(answer), file=sys.stderr)
    return 0


def asked(args: argparse.Namespace) -> tuple[list[Any], str]:
    """The pictures and the question; without both, a sample of the package stands in."""
    from dynllava_jax.demo import pictures

    if args.image is None and args.question is None:
        picture = pictures.SAMPLES[0]
        print(f"dynllava: sample:{picture.name}, {picture.question!r}", file=sys.stderr)
        return [picture.path], picture.question
    if not (args.question or "").strip():
        raise InputError("--question is missing: say what to ask about the picture.")
    return [image_source(image) for image in args.image or ()], args.question


def warn_of_foreign(assistant: Any, images: Iterable[str | Path]) -> None:
    """The demo model answers about any picture, in the only words that it has. Called once the pictures were read."""
    from dynllava_jax.demo import pictures

    scenes = {picture.path.absolute() for picture in pictures.SAMPLES if picture.scene}
    if assistant.scenes_only and any(Path(image).absolute() not in scenes for image in images):
        print(
            "dynllava: the demo model knows only its own scenes (dynllava samples); for other pictures convert a "
            "LLaVA checkpoint: dynllava convert from-torch SRC DST",
            file=sys.stderr,
        )


def image_source(name: str) -> str | Path:
    """A path or address, `sample:NAME` resolved."""
    from dynllava_jax.demo import pictures

    return pictures.sample(name.removeprefix("sample:")).path if name.startswith("sample:") else name


def _summary(answer: Any) -> str:
    patches = [len(kept) for kept in answer.kept_image_tokens]
    judged = [keep for keep in answer.kept_output_tokens if keep is not None]
    return (
        f"dynllava: kept {patches} image tokens and {sum(judged)} of {len(judged)} answer tokens; cache "
        f"{answer.cache_tokens['shallow']} shallow, {answer.cache_tokens['deep']} deep; "
        f"prefill {answer.seconds['prefill']:.2f} s, decode {answer.seconds['decode']:.2f} s"
    )


def _batch(args: argparse.Namespace) -> int:
    if args.image or args.question or args.stream:
        raise InputError("--batch brings its own pictures and questions; drop --image, --question and --stream.")
    requests = _read_batch(args)
    assistant = load_model(args)
    good = [request for request in requests if not isinstance(request, InputError)]
    given = assistant.generate_batch(good, dense=args.dense, use_cache=not args.no_cache)
    read = [request for request, answer in zip(good, given, strict=True) if not isinstance(answer, InputError)]
    warn_of_foreign(assistant, [image for request in read for image in request.images])
    answers = iter(given)
    records = []
    for request in requests:
        answer = request if isinstance(request, InputError) else next(answers)
        records.append({"error": str(answer)} if isinstance(answer, InputError) else answer.as_dict())
    write_json(args.json or "-", records)
    failed = [record["error"] for record in records if "error" in record]
    if failed:
        raise InputError(
            f"--batch {args.batch}: {len(failed)} of {len(records)} requests were bad (an error in each one's place); "
            f"the first: {failed[0]}"
        )
    return 0


def _read_batch(args: argparse.Namespace) -> list[Any]:
    try:
        lines = args.batch.read_text(encoding="utf-8-sig").split("\n")  # a JSON string may hold other line separators
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--batch {args.batch} cannot be read: {error}") from error
    requests: list[Any] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                requests.append(_request(line, args))
            except InputError as error:
                requests.append(InputError(f"{args.batch} line {number}: {error}"))
    if not requests:
        raise InputError(f"--batch {args.batch} holds no request.")
    return requests


_KEYS = ("image", "images", "question", "max_new_tokens", "temperature", "top_p", "top_k", "seed")


def _request(line: str, args: argparse.Namespace) -> Any:
    from dynllava_jax.inference.request import Request

    try:
        asked = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"is no JSON: {error}.") from error
    if not isinstance(asked, Mapping) or not isinstance(asked.get("question"), str):
        raise InputError("needs an object with a question.")
    if unknown := sorted(set(asked) - set(_KEYS)):
        raise InputError(f"has the unknown key {unknown[0]!r}; keys are {', '.join(_KEYS)}.")
    if "image" in asked and "images" in asked:
        raise InputError("has both image and images; give one of them.")
    images = asked.get("images", [asked["image"]] if "image" in asked else [])
    if not isinstance(images, list) or not all(isinstance(image, str) for image in images):
        raise InputError("images must be a list of paths or addresses.")
    wishes = {key: getattr(args, key) if asked.get(key) is None else asked[key] for key in _KEYS[3:]}
    _check_numbers(wishes)
    return Request(
        asked["question"],
        [_relative(image, args.batch) for image in images],
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


_HANDED_OVER = ("/dev", "/dev/fd", "/proc/self/fd")
"""Where /dev/stdin and `<(command)` lie; no pictures lie beside them."""


def _relative(image: str, batch: Path) -> str | Path:
    """Paths in a batch file are relative to it; in what a shell hands over, to the current folder."""
    if image.startswith(("sample:", "http://", "https://")):
        return image_source(image)
    return Path(image) if str(batch.parent) in _HANDED_OVER else batch.parent / image
