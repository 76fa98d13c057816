"""Attention over whole sequences, forward and backward, by each implementation and by the formula in float64.

B batch, H query heads, G key/value heads, S sequence, E head dimension.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from dynllava_jax.kernels import api

KERNELS = ("chunked", "triton-interpret", "tpu-interpret")
_FORWARD, _GRADIENT = 2e-6, 1e-5
_FEW = 4
"""Pairs of a query and another token that it sees: of 1,000 draws with more, in none did all gradients cancel."""
_ROUNDING = 2.0**-24
"""Of terms that cancel, in float32."""


class Shape(NamedTuple):
    """Heads, length and head dimension."""

    heads: int
    groups: int
    length: int
    head_dim: int


# Several tiles each, the last of which is partly padding; 80 and 96 are padded to a power of two by one kernel.
SHAPES = [Shape(2, 2, 150, 64), Shape(4, 2, 70, 80), Shape(3, 1, 40, 96), Shape(1, 1, 130, 128)]


class Inputs(NamedTuple):
    """Arguments of `policy_attention`, and the cotangent of its result, 0 in padding."""

    query: jax.Array
    key: jax.Array
    value: jax.Array
    policy: jax.Array
    lengths: jax.Array
    cotangent: jax.Array


def inputs(
    shape: Shape, lengths: tuple[int, ...], *, seed: int = 0, peak: float = 1.0, rate: float = 0.3, soft: bool = False
) -> Inputs:
    """Random ones. `rate` of the keys are kept, or with `soft` all of them in part."""
    rng = np.random.default_rng(seed)

    def normal(heads: int, scale: float = 1.0) -> np.ndarray:
        return rng.standard_normal((len(lengths), heads, shape.length, shape.head_dim)) * scale

    arrays = normal(shape.heads, peak), normal(shape.groups), normal(shape.groups)
    policy = rng.random((len(lengths), shape.length))
    policy = policy if soft else policy < rate
    real = np.arange(shape.length) < np.array(lengths)[:, None]
    cotangent = normal(shape.heads) * real[:, None, :, None]
    query, key, value, policy, cotangent = (jnp.asarray(x, jnp.float32) for x in (*arrays, policy, cotangent))
    return Inputs(query, key, value, policy, jnp.asarray(lengths), cotangent)


@functools.cache
def under_policy(name: str, eps: float = 1e-6) -> Callable[[Inputs], tuple[jax.Array, ...]]:
    """Output and gradients of `policy_attention` by one implementation."""

    def run(given: Inputs) -> tuple[jax.Array, ...]:
        def attend(*args: jax.Array) -> jax.Array:
            return api.policy_attention(*args, lengths=given.lengths, eps=eps, implementation=name)

        out, pull = jax.vjp(attend, *given[:4])
        return out, *pull(given.cotangent)

    return jax.jit(run)


@functools.cache
def plain(name: str) -> Callable[[Inputs], tuple[jax.Array, ...]]:
    """Output and gradients of `attention` with dropped keys."""

    def run(given: Inputs) -> tuple[jax.Array, ...]:
        def attend(*args: jax.Array) -> jax.Array:
            return api.attention(*args, keep=given.policy > 0, implementation=name)

        out, pull = jax.vjp(attend, *given[:3])
        return out, *pull(given.cotangent)

    return jax.jit(run)


def truth(given: Inputs, *, eps: float = 1e-6, hide: bool = False) -> tuple[np.ndarray, ...]:
    """Output and gradients in float64; with `hide` (and eps 0) of `attention`, whose dropped keys hold no maximum."""
    with jax.enable_x64(True):
        double = (jnp.asarray(x, x.dtype if x is given.lengths else jnp.float64) for x in given)
        return tuple(np.asarray(x) for x in _by_formula(Inputs(*double), eps, hide))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _by_formula(given: Inputs, eps: float, hide: bool) -> tuple[jax.Array, ...]:
    def attend(query: jax.Array, key: jax.Array, value: jax.Array, policy: jax.Array) -> jax.Array:
        key, value = (jnp.repeat(x, query.shape[1] // x.shape[1], axis=1) for x in (key, value))
        position, lengths = jnp.arange(query.shape[2]), given.lengths[:, None, None, None]
        real, own = position < lengths, position[:, None] == position
        weight = jnp.where(own, 1.0, policy[:, None, None])
        visible = (position[:, None] >= position) & real & ((weight > 0) | (not hide))
        scores = jnp.where(visible, query @ key.swapaxes(2, 3) / query.shape[3] ** 0.5, -1e30)
        kept = jnp.where(visible, jnp.exp(scores - scores.max(axis=3, keepdims=True)), 0.0) * weight
        whole = kept.sum(axis=3, keepdims=True) + eps
        return (kept + real * eps / jnp.maximum(lengths, 1)) @ value / jnp.where(whole > 0, whole, 1.0)

    out, pull = jax.vjp(attend, *given[:4])
    return out, *pull(given.cotangent)


def exact(name: str, truth: tuple[Any, ...], by_xla: tuple[Any, ...]) -> tuple[Any, ...]:
    """What peaky scores are compared with: chunks are XLA in float32, which is further off than the kernels."""
    return by_xla if name == "chunked" else truth


def assert_close(found: tuple[jax.Array, ...], wanted: tuple[Any, ...], given: Inputs, *, peak: float = 1.0) -> None:
    """Each array within its tolerance times the largest number that is wanted of it.

    Where hardly a query sees any token but its own, gradients of scores are differences of equal numbers, and 0 may be
    what is wanted: there they are held to one rounding of those numbers, if it is less than the tolerance times 1, or
    for the keys' gradient times the `peak` of the queries that it is a multiple of.
    """
    real = np.arange(given.query.shape[2]) < np.asarray(given.lengths)[:, None]
    for name, one, other in zip(("out", "query", "key", "value", "policy"), found, wanted, strict=False):
        ours, truth = np.asarray(one), np.asarray(other)
        assert np.isfinite(ours).all(), name
        if name == "out":
            ours, truth = (x * real[:, None, :, None] for x in (ours, truth))
        allowed = (_FORWARD if name == "out" else _GRADIENT) * float(np.abs(truth).max())
        if name not in ("out", "value") and _lonely(given):
            most = _GRADIENT * (peak if name == "key" else 1.0)
            allowed = max(allowed, min(most, _ROUNDING * _terms(given, name)))
        np.testing.assert_allclose(ours, truth, rtol=0, atol=allowed, err_msg=name)


def _lonely(given: Inputs) -> bool:
    """Whether queries see hardly any tokens but their own, so that gradients of scores may all cancel."""
    position, kept = np.arange(given.query.shape[2]), np.asarray(given.policy) > 0
    later = np.maximum(np.asarray(given.lengths)[:, None] - 1 - position, 0)
    return int((kept * later).sum()) <= _FEW


def _terms(given: Inputs, name: str) -> float:
    """What cancels in a gradient, at most: products of cotangents and values, times what each is multiplied by."""
    cotangent, query, key, value = (np.abs(np.asarray(x)) for x in (given.cotangent, *given[:3]))
    products = cotangent.sum(axis=3).max() * value.max()
    factor = {"query": key, "key": query}.get(name, np.ones(1)).max()
    return float(products * factor / given.query.shape[3] ** 0.5)
