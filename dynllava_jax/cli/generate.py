"""`dynllava generate`: one question, or a file of them."""

import argparse
import sys
from typing import Any

from dynllava_jax.cli import generate_batch
from dynllava_jax.cli.model_options import add_answer_options, add_model_options, answer_options, load_model
from dynllava_jax.cli.output import add_json, write_json
from dynllava_jax.cli.pictures import image_source, read_pictures, warn_of_foreign
from dynllava_jax.errors import InputError


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("generate", help="ask about pictures")
    parser.add_argument("--image", action="append", metavar="SOURCE", help="file, URL or sample:NAME; may be repeated")
    parser.add_argument("--question", metavar="TEXT", help="<image> marks where each picture stands")
    add_model_options(parser)
    add_answer_options(parser)
    parser.add_argument("--no-cache", action="store_true", help="run the whole sequence at every step")
    parser.add_argument("--stream", action="store_true", help="print the answer as it appears")
    generate_batch.add_options(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Returns 0; bad input is raised as InputError."""
    if args.batch is not None:
        return generate_batch.run(args)
    generate_batch.check_absent(args)
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


def _summary(answer: Any) -> str:
    patches = [len(kept) for kept in answer.kept_image_tokens]
    judged = [keep for keep in answer.kept_output_tokens if keep is not None]
    return (
        f"dynllava: kept {patches} image tokens and {sum(judged)} of {len(judged)} answer tokens; cache "
        f"{answer.cache_tokens['shallow']} shallow, {answer.cache_tokens['deep']} deep; "
        f"prefill {answer.seconds['prefill']:.2f} s, decode {answer.seconds['decode']:.2f} s"
    )
