"""What the documents say about the code is there in the code."""

import dataclasses
import re
import types
import typing
from pathlib import Path
from typing import Any

import pytest

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
