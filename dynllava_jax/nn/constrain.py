"""Activation shardings by logical axis name: the identity until training or inference says what the names mean."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator

import jax

Constraint = Callable[[jax.Array, tuple[str | None, ...]], jax.Array]

_constraint: contextvars.ContextVar[Constraint | None] = contextvars.ContextVar("constraint", default=None)


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Marks each axis of `x` with its logical name. A name that does not divide the mesh raises in the rules."""
    constraint = _constraint.get()
    return x if constraint is None else constraint(x, axes)


@contextlib.contextmanager
def constraints(constraint: Constraint | None) -> Iterator[None]:
    """Sets what `constrain` does while a function is traced inside the block."""
    token = _constraint.set(constraint)
    try:
        yield
    finally:
        _constraint.reset(token)
