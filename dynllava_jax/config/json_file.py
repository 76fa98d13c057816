"""JSON objects from files, and what stands in them: every complaint names the file and the key, and what to do."""

import json
from collections import Counter
from typing import Any, Protocol, runtime_checkable

from dynllava_jax.errors import InputError, shown

AGAIN = "copy it again"


@runtime_checkable
class Readable(Protocol):
    """A path, here or on a bucket."""

    def read_bytes(self) -> bytes: ...


def read_object(path: Readable, advice: str = AGAIN) -> dict[str, Any]:
    """The JSON object in a file.

    Args:
        path: names the file in errors.
        advice: what errors tell the user to do.

    Raises:
        InputError: a file that cannot be read, or `parse_object`'s reasons.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}; {advice}.") from None
    return parse_object(data, str(path), advice)


def parse_object(data: bytes, file: str, advice: str = AGAIN) -> dict[str, Any]:
    """The JSON object that the bytes hold; a byte order mark in front of it is passed over.

    Raises:
        InputError: no UTF-8, no JSON, too deep, a key that stands twice in an object, another value than an object.
    """
    try:
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as JSON ({error}); {advice}.") from None
    if not isinstance(value, dict):
        raise InputError(f"{file} must hold a JSON object, not {shown(value)}; {advice}.")
    return value


def wrong(file: Any, key: str, wanted: str, value: Any, advice: str = AGAIN) -> InputError:
    """The error for a value that is not what is wanted."""
    return InputError(f"{file}: {key} must be {wanted}, not {shown(value)}; {advice}.")


def is_whole(value: Any, least: int = 0) -> bool:
    """Whether it is a whole number that an array can count, `least` or more; True and 2.0 are none."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < 1 << 63


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python keeps the last of two equal keys, and other programs the first."""
    found = dict(pairs)
    if len(found) != len(pairs):
        ((twice, _),) = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"the key {shown(twice)} occurs twice")
    return found
