"""`dynllava chat`: a conversation in the terminal, on one cache."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any

from dynllava_jax.cli.model_options import add_answer_options, add_model_options, answer_options, load_model
from dynllava_jax.cli.pictures import image_source, read_pictures, warn_of_foreign
from dynllava_jax.errors import InputError

if TYPE_CHECKING:
    from dynllava_jax.inference.stream import Stream


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("chat", help="a conversation in the terminal")
    parser.add_argument("--image", action="append", metavar="SOURCE", help="file, URL or sample:NAME; may be repeated")
    add_model_options(parser)
    add_answer_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reads questions until an empty line or the end of input; Ctrl-C ends an answer, twice the chat.

    Someone at a terminal may put a refused question in other words; from a pipe it ends the chat.
    """
    if sys.stdin is None:
        raise InputError("stdin is closed; chat reads its questions from it.")
    options = answer_options(args)
    images = [image_source(image) for image in args.image or ()]
    pictures = read_pictures(images)
    assistant = load_model(args)
    chat = assistant.chat(pictures, dense=args.dense)
    warned = False
    if sys.stdin.isatty():
        print("Ask; an empty line ends the chat.", file=sys.stderr)
    while question := _read():
        try:
            stream = chat.stream(question, **options)
        except InputError as error:
            if not sys.stdin.isatty():
                raise
            print(f"dynllava: {error}", file=sys.stderr)
            continue
        if not warned:
            warn_of_foreign(assistant, images)
            warned = True
        with _ending(stream):
            for piece in stream:
                print(piece, end="", flush=True)
        print()
    return 0


@contextlib.contextmanager
def _ending(stream: "Stream") -> Iterator[None]:
    """The first Ctrl-C cancels the stream. An exception in the middle of a step would lose the answer so far."""

    def cancel(number: int, frame: FrameType | None) -> None:
        stream.cancel()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _read() -> str:
    if sys.stdin.isatty():
        print("> ", end="", flush=True, file=sys.stderr)
    return sys.stdin.readline().strip()
