"""What `--help` prints."""

import argparse
import importlib
from collections.abc import Iterator

import pytest

from dynllava_jax.cli.main import COMMANDS


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """It and all those of its subcommands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_text_is_printed_as_it_is_meant(command: str) -> None:
    """Argparse takes "%%" for "%" in the help of an option, but not in a description."""
    top = argparse.ArgumentParser()
    importlib.import_module(f"dynllava_jax.cli.{command}").add_parser(top.add_subparsers())
    for parser in parsers(top):
        assert "%%" not in parser.format_help()
