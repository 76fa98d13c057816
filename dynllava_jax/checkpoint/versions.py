"""Old formats: each step of this table makes a document of one `format_version` one of the next.

A checkpoint of every version that was ever written stays among the tests' fixtures.
"""

from collections.abc import Callable, Mapping
from typing import Any

from dynllava_jax.errors import InputError, shown

Document = dict[str, Any]


def _as_it_is(document: Document) -> Document:
    return document


MODEL: Mapping[int, Callable[[Document], Document]] = {
    1: _as_it_is,  # embedding, head and tower were in the item "rest"; hashes.json says where each leaf lies
}
MODEL_VERSION = 2

TRAINING: Mapping[int, Callable[[Document], Document]] = {}
TRAINING_VERSION = 1


def migrated(
    document: Document, where: str, version: int, steps: Mapping[int, Callable[[Document], Document]]
) -> Document:
    """`config.json` as this version of the package writes it.

    Args:
        document: as it was read.
        where: the checkpoint, for errors.
        version: the one wanted.
        steps: how to come from each older version to the next.

    Raises:
        InputError: a version that no step begins with, by its number.
    """
    found = document.get("format_version")
    while found != version:
        if type(found) is not int or found not in steps:
            known = ", ".join(str(number) for number in sorted({*steps, version}))
            raise InputError(
                f"{where} has format_version {shown(found)}; this dynllava_jax reads {known}. Install the version that "
                "wrote it, or make the checkpoint again."
            )
        document = steps[found](document)
        found += 1
    return document
