"""`dynllava`: one small file per command, and one place where errors become an exit status.

0 done, 1 a check failed, 2 bad input (one line that names the file, field or key), 75 what has begun is saved and goes
on with the same command, 130 interrupted, 141 nobody reads stderr any more.
"""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import dynllava_jax
from dynllava_jax.cli.chips import choose_platform
from dynllava_jax.cli.cpu_threads import give_cpu_threads
from dynllava_jax.cli.failure import is_expected, report
from dynllava_jax.cli.gpu_memory import take_gpu_memory
from dynllava_jax.cli.interrupts import heard_interrupts
from dynllava_jax.cli.streams import status_without_reader, write_any_character, written_out
from dynllava_jax.errors import InputError

COMMANDS = {
    "generate": "ask about pictures",
    "chat": "a conversation in the terminal",
    "train": "fine-tune on your own data",
    "plan": "whether a run fits on a machine, and what it costs, before it is rented",
    "eval": "measure how well a model answers",
    "demo": "make the demo model's data, and pretrain its tower",
    "show": "pictures of what was kept, and of a training run",
    "samples": "the pictures that come with the package",
    "convert": "bring PyTorch weights in or out, or make a model of a training run",
    "inspect": "what a checkpoint holds",
    "data": "pack training data into shards, or check it",
    "verify": "compare with numbers recorded from the official code",
    "flops": "what a prompt costs, counted without weights",
    "bench": "how fast attention, generation and training are here",
    "doctor": "versions, devices, what runs where",
}


_COMPILE_CACHE = "JAX_COMPILATION_CACHE_DIR"
"""Programs are kept between runs; set the variable to another folder, or to "" to keep none."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status."""
    argv = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    os.environ.setdefault(_COMPILE_CACHE, _programs_folder())
    choose_platform()
    take_gpu_memory()
    give_cpu_threads()
    write_any_character()
    try:
        with heard_interrupts(), written_out():
            args = _parse(argv)
            _log_to_stderr(debug)
            logging.getLogger("dynllava_jax").setLevel(logging.DEBUG if debug else logging.WARNING)
            args.command_line = [*argv, *(["--debug"] if debug else [])]
            return args.run(args)
    except KeyboardInterrupt as error:
        return report(error)[0]
    except Exception as error:
        if isinstance(error, BrokenPipeError) and (status := status_without_reader()) is not None:
            return status
        if debug and not is_expected(error):
            raise
        return report(error, debug)[0]


def _programs_folder() -> str:
    try:
        return str(Path.home() / ".cache" / "dynllava_jax" / "programs")
    except RuntimeError:  # no HOME, and a user whom the system does not know, as in some containers
        return ""


def _log_to_stderr(debug: bool) -> None:
    """Warnings, of other packages too (JAX logs a whole traceback where a plugin finds no chip), in one line each."""
    logging.basicConfig(level=logging.WARNING, format="dynllava: %(message)s", stream=sys.stderr)
    if not debug:
        for handler in logging.getLogger().handlers:
            handler.addFilter(_without_traceback)


def _without_traceback(record: logging.LogRecord) -> bool:
    if record.exc_info and isinstance(record.exc_info, tuple) and record.exc_info[1] is not None:
        record.msg = f"{record.getMessage()}: {' '.join(str(record.exc_info[1]).split())} (--debug shows where)"
        record.args = record.exc_info = record.exc_text = None
    return True


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = _Parser(
        prog="dynllava", description="Dynamic-LLaVA in JAX.", epilog="--debug shows tracebacks and what was decided."
    )
    parser.add_argument("--version", action="version", version=f"dynllava_jax {dynllava_jax.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    # Only the command that is asked for is imported: help and errors stay quick.
    asked = next((word for word in argv if not word.startswith("-")), None)
    for name, help_text in COMMANDS.items():
        if name == asked:
            importlib.import_module(f"dynllava_jax.cli.{name}").add_parser(commands)
        else:
            commands.add_parser(name, help=help_text)
    args, unknown = parser.parse_known_args(argv)
    # `--config.key=value` has as many names as a config has keys; the command that takes them says so.
    if wrong := [word for word in unknown if not (hasattr(args, "overrides") and word.startswith("--config."))]:
        parser.error(f"unrecognized arguments: {' '.join(wrong)}")
    if unknown:
        args.overrides = unknown
    return args


class _Parser(argparse.ArgumentParser):
    """Bad options are bad input like any other: one line, status 2."""

    def error(self, message: str):
        raise InputError(f"{message} (see {self.prog} --help)")


if __name__ == "__main__":
    sys.exit(main())
