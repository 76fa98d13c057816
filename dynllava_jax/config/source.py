"""A foreign JSON config being read: every complaint names its file and key."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from dynllava_jax.errors import InputError

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

    def real(self, key: str, default: float | None = None) -> Any:
        """A float field; JSON may write it without a point. Needed when there is no default."""
        value = self.need(key) if default is None else self.get(key, default)
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    def nested(self, key: str) -> "Source":
        value = self.get(key, {})
        if not isinstance(value, Mapping):
            raise InputError(f"{self.file}: {key} must be an object, not {value!r}.")
        return Source(value, f"{self.file}: {key}")

    def only(self, key: str, allowed: Any, why: str) -> None:
        """Refuses a value that this package cannot express; absent means the allowed one."""
        value = self.get(key, allowed)
        if value != allowed:
            raise InputError(f"{self.file}: {key} {value!r} is not supported ({why}); only {allowed!r} is.")

    def choose(self, key: str, default: Any, choices: Mapping[Any, Any]) -> Any:
        value = self.get(key, default)
        if not isinstance(value, str) or value not in choices:
            raise InputError(f"{self.file}: {key} {value!r} is not supported; use one of {', '.join(choices)}.")
        return choices[value]

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Puts the file's name in front of what a config dataclass says about its fields."""
        try:
            yield
        except InputError as error:
            message = str(error)
            raise error if message.startswith(self.file) else InputError(f"{self.file}: {message}") from None
