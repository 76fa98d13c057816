"""Checks that every config dataclass runs on itself, so that a wrong value is named at once."""

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Sequence
from typing import Any

from dynllava_jax.errors import InputError, shown


def check_fields(config: Any) -> None:
    """Compares each field of a dataclass with its annotation.

    Raises:
        InputError: names the class, the field, the type wanted and the value given.
    """
    hints = typing.get_type_hints(type(config))
    for field in dataclasses.fields(config):
        check_type(getattr(config, field.name), hints[field.name], f"{type(config).__name__}.{field.name}")


def check_type(value: Any, hint: Any, name: str) -> None:
    """Raises InputError when `value`, called `name`, is not what `hint` says."""
    if not _fits(value, hint):
        raise InputError(f"{name} must be {_spell(hint)}, not {shown(value)} ({type(value).__name__}).")


def check_positive(config: Any, *names: str) -> None:
    for name in names:
        if not 0 < (value := getattr(config, name)) < math.inf:
            wanted = "finite" if value == math.inf else "above 0"
            raise InputError(f"{type(config).__name__}.{name} must be {wanted}, not {shown(value)}.")


def check_not_negative(config: Any, *names: str) -> None:
    for name in names:
        if not 0 <= (value := getattr(config, name)) < math.inf:
            wanted = "finite" if value == math.inf else "0 or more"
            raise InputError(f"{type(config).__name__}.{name} must be {wanted}, not {shown(value)}.")


def check_named(config: Any, *names: str) -> None:
    """A path or name is not empty, as it is where a shell knows no variable of the name that was written."""
    for name in names:
        value = getattr(config, name)
        if value == "" or (isinstance(value, tuple) and "" in value):
            raise InputError(f"{type(config).__name__}.{name} is empty; name something, or leave it out.")


DTYPES = ("float32", "bfloat16", "float16")
"""What weights are stored and computed in."""


MAX_SEED = (1 << 32) - 1
"""JAX's generator drops what is above it, so that larger seeds would be others' doubles."""


def check_seed(config: Any, name: str) -> None:
    if not 0 <= getattr(config, name) <= MAX_SEED:
        raise InputError(
            f"{type(config).__name__}.{name} must lie in 0 … {MAX_SEED}, not {shown(getattr(config, name))}."
        )


MAX_LAYERS = 10_000
"""No model has as many: a damaged config would have us list names for hours."""


def check_layers(config: Any, name: str) -> None:
    """A count of layers is at least 1, and believable."""
    check_positive(config, name)
    if getattr(config, name) > MAX_LAYERS:
        raise InputError(
            f"{type(config).__name__}.{name} {shown(getattr(config, name))} is more than {MAX_LAYERS} layers."
        )


MAX_SIZE = 1 << 24
"""No model has a wider dimension, no run more steps; what arrays cannot count would fail without saying why."""


def check_sizes(config: Any, *names: str) -> None:
    """Sizes of dimensions, and counts, are above 0 and believable."""
    check_positive(config, *names)
    for name in names:
        if getattr(config, name) > MAX_SIZE:
            raise InputError(f"{type(config).__name__}.{name} {shown(getattr(config, name))} is more than {MAX_SIZE}.")


def check_rate(config: Any, *names: str) -> None:
    """A keep rate lies in (0, 1]."""
    for name in names:
        rate = getattr(config, name)
        if not 0.0 < rate <= 1.0:
            raise InputError(f"{type(config).__name__}.{name} must lie in (0, 1], not {shown(rate)}.")


def check_choice(config: Any, name: str, choices: Sequence[str]) -> None:
    if getattr(config, name) not in choices:
        raise InputError(
            f"{type(config).__name__}.{name} must be one of {', '.join(choices)}, not {shown(getattr(config, name))}."
        )


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, arg) for arg in args)
    if origin is typing.Literal:
        return any(type(value) is type(arg) and value == arg for arg in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if len(args) == 2 and args[1] is Ellipsis:
            return all(_fits(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(_fits, value, args))
    if hint is Any:
        return True
    if hint is float:
        return isinstance(value, float) or (_fits(value, int) and abs(value) <= sys.float_info.max)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, type(None) if hint is None else hint)


def _spell(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_spell(arg) for arg in args)
    if origin is typing.Literal:
        return " or ".join(repr(arg) for arg in args)
    if origin is tuple:
        return f"a tuple of {_spell(args[0])}" if args[-1] is Ellipsis else f"a tuple of {len(args)}"
    return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))
