"""What the documents say about the code is there in the code."""

import dataclasses
import re
import shlex
import types
import typing
from pathlib import Path
from typing import Any

import pytest

from dynllava_jax.cli import main
from dynllava_jax.config.training import TrainConfig

DOCS = Path(__file__).parents[1] / "docs"
TOP = "|".join(field.name for field in dataclasses.fields(TrainConfig))


def options(hint: Any) -> tuple[Any, ...]:
    union = typing.get_origin(hint) in (typing.Union, types.UnionType)
    return typing.get_args(hint) if union else (hint,)


def exists(key: str) -> bool:
    """Whether some TrainConfig has that key."""
    classes: tuple[Any, ...] = (TrainConfig,)
    for name in key.split("."):
        hints = [typing.get_type_hints(cls) for cls in classes if dataclasses.is_dataclass(cls)]
        found = [hint[name] for hint in hints if name in hint]
        if not found:
            return False
        classes = tuple(option for hint in found for option in options(hint))
    return True


def test_the_search_itself() -> None:
    assert exists("optimizer.lora.rank")
    assert exists("sparsity.image_predictor.depth")
    assert not exists("optimizer.lora.width")
    assert not exists("seed.value")


@pytest.mark.parametrize("name", ["from_llava.md"])
def test_config_keys_exist(name: str) -> None:
    keys = set(re.findall(rf"`((?:{TOP})(?:\.[a-z0-9_]+)*)[` ]", (DOCS / name).read_text()))
    assert len(keys) > 10
    assert [key for key in sorted(keys) if not exists(key)] == []


def commands(name: str) -> list[list[str]]:
    """The words of every `dynllava` command of a document, of those in its sentences too."""
    text = (DOCS / name).read_text()
    blocks = "\n".join(line[4:] for line in text.replace("\\\n", " ").splitlines() if line.startswith("    "))
    run = re.search(r"^--config=\S+ --workdir=.*$", blocks, re.MULTILINE)
    assert run is not None
    inside = re.findall(r"`(dynllava [a-z]+ [^`]+)`", re.sub(r"\s*\n", " ", text))
    found = [*re.findall(r"^dynllava .*$", blocks, re.MULTILINE), *inside]
    return [shlex.split(re.sub(r"\bRUN\b", run[0], command)) for command in found]


@pytest.mark.parametrize("command", commands("cluster.md"), ids=lambda words: " ".join(words[1:3]))
def test_commands_exist(command: list[str]) -> None:
    args = main._parse(command[1:])
    for override in getattr(args, "overrides", ()):
        assert exists(override.removeprefix("--config.").partition("=")[0]), override


def test_files_that_documents_link_to_exist() -> None:
    for document in [*DOCS.glob("*.md"), DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"]:
        for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / link).exists(), f"{document.name} links to {link}"
