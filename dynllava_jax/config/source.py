"""A foreign JSON config being read: every complaint names its file and key."""

import contextlib
import dataclasses
import re
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from dynllava_jax.errors import InputError, shown

_ABSENT = object()


@dataclasses.dataclass(frozen=True)
class Source:
    """`values` as parsed from `file`. A key that is present with null counts as absent, as in transformers."""

    values: Mapping[str, Any]
    file: str

    def need(self, key: str) -> Any:
        value = self.get(key, _ABSENT)
        if value is _ABSENT:
            raise InputError(f"{self.file} has no {key}; it is needed to know the model.")
        return value

    def get(self, key: str, default: Any = None) -> Any:
        value = self.values.get(key)
        return default if value is None else value

    def real(self, key: str, default: float | None = None) -> float:
        """A number; JSON may write it without a point. Needed when there is no default."""
        value = self.need(key) if default is None else self.get(key, default)
        return self._number(key, value, "a number")

    def reals(self, key: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
        """Three numbers."""
        value = self.get(key, default)
        if not isinstance(value, (list, tuple)) or len(value) != 3:
            raise InputError(f"{self.file}: {key} must be three numbers, not {shown(value)}.")
        first, second, third = (self._number(key, number, "three numbers") for number in value)
        return first, second, third

    def flag(self, key: str, default: bool | None = None) -> bool:
        """True or false, also written 1 and 0; needed when there is no default."""
        value = self.need(key) if default is None else self.get(key, default)
        if not isinstance(value, int) or value not in (0, 1):
            raise InputError(f"{self.file}: {key} must be true or false, not {shown(value)}.")
        return bool(value)

    def nested(self, key: str) -> "Source":
        value = self.get(key, {})
        if not isinstance(value, Mapping):
            raise InputError(f"{self.file}: {key} must be an object, not {shown(value)}.")
        return Source(value, f"{self.file}: {key}")

    def only(self, key: str, allowed: Any, why: str) -> None:
        """Refuses a value that this package cannot express; absent means the allowed one."""
        value = self.get(key, allowed)
        if value != allowed:
            raise InputError(f"{self.file}: {key} {shown(value)} is not supported ({why}); only {allowed!r} is.")

    def choose(self, key: str, default: Any, choices: Mapping[Any, Any]) -> Any:
        value = self.get(key, default)
        if not isinstance(value, str) or value not in choices:
            raise InputError(f"{self.file}: {key} {shown(value)} is not supported; use one of {', '.join(choices)}.")
        return choices[value]

    @contextlib.contextmanager
    def named(self, **keys: str) -> Iterator[None]:
        """Puts the file's name in front of what a config dataclass says about its fields.

        `keys`: what the file calls a field, where that is another name.
        """
        try:
            yield
        except InputError as error:
            message = str(error)
            if message.startswith(self.file):
                raise
            if keys:
                message = re.sub(rf"\b(?:\w+\.)?({'|'.join(keys)})\b", lambda match: keys[match[1]], message)
            raise InputError(f"{self.file}: {message}") from None

    def _number(self, key: str, value: Any, wanted: str) -> float:
        fits = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not fits or (isinstance(value, int) and abs(value) > sys.float_info.max):
            raise InputError(f"{self.file}: {key} must be {wanted}, not {shown(value)}.")
        return float(value)
