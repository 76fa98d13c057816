"""Config dataclasses as JSON and back; the form that model checkpoints and result files carry.

A dataclass becomes an object of its fields. Where several classes may stand (a projector, a predictor, a RoPE
scaling) the object names its own under "class".
"""

import dataclasses
import difflib
import sys
import types
import typing
from typing import Any, TypeVar

from dynllava_jax.config.check import check_type
from dynllava_jax.errors import InputError, shown

Config = TypeVar("Config")

CLASS = "class"


def to_json(config: Any) -> Any:
    """Plain JSON values; tuples become lists."""
    return _encode(config, type(config))


def from_json(cls: type[Config], value: Any, where: str) -> Config:
    """The inverse of `to_json`. An absent field takes its default.

    Args:
        cls: the dataclass wanted.
        value: what the JSON parser gave; tuples count as lists.
        where: the file (and key) that errors name.

    Raises:
        InputError: an unknown key (with the nearest known one, or where it stands), a class that may not stand there, a
            wrong value.
    """
    return _decode(value, cls, where)


def _encode(value: Any, hint: Any) -> Any:
    if dataclasses.is_dataclass(value):
        hints = typing.get_type_hints(type(value))
        fields = {
            field.name: _encode(getattr(value, field.name), hints[field.name]) for field in dataclasses.fields(value)
        }
        return {CLASS: type(value).__name__, **fields} if len(_classes(hint)) > 1 else fields
    if isinstance(value, tuple):
        return [_encode(item, Any) for item in value]
    return value


def _decode(value: Any, hint: Any, where: str) -> Any:
    classes = _classes(hint)
    if classes and isinstance(value, dict):
        return _build(_choose(value, classes, where), value, where)
    if classes and not (value is None and type(None) in typing.get_args(hint)):
        raise InputError(f"{where} must be an object, not {shown(value)}.")
    if isinstance(value, (list, tuple)):
        items = typing.get_args(hint) or (Any,)
        return tuple(_decode(item, items[0], where) for item in value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value) if abs(value) <= sys.float_info.max else value  # which the check refuses
    return value


def _choose(value: dict[str, Any], classes: dict[str, type], where: str) -> type:
    if len(classes) == 1:
        return next(iter(classes.values()))
    name = value.get(CLASS)
    if not isinstance(name, str) or name not in classes:
        raise InputError(f"{where}.{CLASS} must be one of {', '.join(classes)}, not {shown(name)}.")
    return classes[name]


def _build(cls: type, value: dict[str, Any], where: str) -> Any:
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]
    fields = {}
    for key, item in value.items():
        if key == CLASS:
            continue
        if not isinstance(key, str):
            raise InputError(f"{where} has the key {shown(key)}, which is no name.")
        if key not in names:
            near = _below(cls, key) or difflib.get_close_matches(key, names, 1, 0.0)
            told = f"the nearest key is {' or '.join(near)}" if near else "remove it"
            raise InputError(f"{where}.{key} is unknown; {told}.")
        fields[key] = _decode(item, hints[key], f"{where}.{key}")
        check_type(fields[key], hints[key], f"{where}.{key}")
    try:
        return cls(**fields)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _below(cls: type, key: str) -> list[str]:
    """Where a key of this name stands in the parts of `cls`, such as optimizer.learning_rate."""
    hints = typing.get_type_hints(cls)
    found: list[str] = []
    for field in dataclasses.fields(cls):
        for part in _classes(hints[field.name]).values():
            own = [key] if key in {inner.name for inner in dataclasses.fields(part)} else []
            found += [f"{field.name}.{name}" for name in own + _below(part, key)]
    return list(dict.fromkeys(found))


def _classes(hint: Any) -> dict[str, type]:
    """The dataclasses that may stand where `hint` is written, by name."""
    options = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    return {
        option.__name__: option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)
    }
