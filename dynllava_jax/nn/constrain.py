"""Activation shardings by logical axis name: the identity until training or inference says what the names mean."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

import jax

Axes = tuple[str | None, ...]


@runtime_checkable
class Constraint(Protocol):
    """What the logical names mean on one mesh (`sharding.specs.activation_constraint`)."""

    @property
    def device(self) -> Any:
        """One of the mesh's devices; they are all of a kind."""
        ...

    def __call__(self, x: jax.Array, axes: Axes) -> jax.Array:
        """`x`, split as its names ask."""
        ...

    def per_shard(self, function: Callable[..., Any], args: tuple[Any, ...], axes: tuple[Axes, ...], out: Axes) -> Any:
        """`function` on every device's own part of `args`."""
        ...


@dataclasses.dataclass(frozen=True)
class OneDevice:
    """A `Constraint` that splits nothing, but says what is compiled for: a device that need not be JAX's default."""

    device: Any

    def __call__(self, x: jax.Array, axes: Axes) -> jax.Array:
        del axes
        return x

    def per_shard(self, function: Callable[..., Any], args: tuple[Any, ...], axes: tuple[Axes, ...], out: Axes) -> Any:
        del axes, out
        return function(*args)


_constraint: contextvars.ContextVar[Constraint | None] = contextvars.ContextVar("constraint", default=None)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Marks each axis of `x` with its logical name. A name that does not divide the mesh raises in the rules."""
    constraint = _constraint.get()
    return x if constraint is None else constraint(x, axes)


def per_shard(function: Callable[..., Any], *args: Any, axes: tuple[Axes, ...], out: Axes) -> Any:
    """`function(*args)`, every device computing on its own part alone: the compiler has nothing to gather.

    Args:
        function: must give the same for a part of the named dimensions as for all of them, part by part.
        args: arrays, or trees of arrays that are split alike.
        axes: logical names of each argument's dimensions.
        out: those of every result's.
    """
    constraint = _constraint.get()
    return function(*args) if constraint is None else constraint.per_shard(function, args, axes, out)


def compiled_for() -> Any | None:
    """One of the devices that a function is traced for, where constraints are in force."""
    constraint = _constraint.get()
    return None if constraint is None else constraint.device


@contextlib.contextmanager
def constraints(constraint: Constraint | None) -> Iterator[None]:
    """Sets what `constrain` does while a function is traced inside the block."""
    token = _constraint.set(constraint)
    try:
        yield
    finally:
        _constraint.reset(token)
