"""Attention alone, by every implementation that this platform compiles, beside what JAX ships.

B batch, H query heads, G key/value heads, S sequence, C cache capacity, E head dimension.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dynllava_jax.benchmark.timing import Machine, measure
from dynllava_jax.errors import InputError
from dynllava_jax.kernels import api

OPERATIONS = ("causal", "policy", "decode")
"""Prefill, the deep layers in training, and one new token against a full cache."""

_DOOR = {"causal": "attention", "policy": "policy_attention", "decode": "cached_attention"}
_BACKWARD = 2.5
"""Matrix products of the backward pass by those of the forward pass."""


@dataclasses.dataclass(frozen=True)
class AttentionShape:
    """B, H, G, S (of a cache: tokens held, and its capacity) and E."""

    batch: int
    heads: int
    kv_heads: int
    length: int
    head_dim: int

    @staticmethod
    def parse(text: str) -> "AttentionShape":
        """From "4,32,32,2048,128".

        Raises:
            InputError: not five whole numbers, or heads that do not divide.
        """
        try:
            shape = AttentionShape(*(int(word) for word in text.split(",")))
        except (ValueError, TypeError):
            raise InputError(f"--shape {text} is not BATCH,HEADS,KV_HEADS,LENGTH,HEAD_DIM.") from None
        if min(dataclasses.astuple(shape)) < 1 or shape.heads % shape.kv_heads:
            raise InputError(f"--shape {text}: sizes must be 1 or more, and the heads a multiple of the kv heads.")
        return shape


def bench_attention(
    operation: str,
    shape: AttentionShape,
    dtype: str,
    machine: Machine,
    *,
    names: Sequence[str] = (),
    least: float = 0.2,
) -> Iterator[dict[str, Any]]:
    """One record for each implementation of one operation, the references first.

    Args:
        operation: of `OPERATIONS`.
        shape: sizes.
        dtype: of all arrays.
        machine: what to compare with.
        names: implementations of the door; none: those that it would try here, and xla.
        least: seconds of a round, see `measure`.

    Raises:
        InputError: an implementation that the door does not know, or that is interpreted.
    """
    if timeless := [name for name in names if "interpret" in name]:
        raise InputError(f"{timeless[0]} is run by an interpreter, whose time says nothing about the kernel's.")
    inputs = _inputs(operation, shape, dtype)
    known: dict[str, dict[str, Any]] = {}
    # What is compared with comes first; decoding has nothing to cut into chunks.
    first = () if operation == "decode" else ("chunked",)
    own = tuple(dict.fromkeys((*first, *(names or (*api.chosen(machine.platform)[_DOOR[operation]], "xla")))))
    for name, function in {**_references(operation), **{name: _door(operation, name) for name in own}}.items():
        record = {"operation": operation, **dataclasses.asdict(shape), "dtype": dtype, "implementation": name}
        try:
            record |= _numbers(operation, shape, function, inputs, machine, least)
        except InputError:
            raise
        except Exception as error:  # whatever a backend raises: the others are still worth measuring
            record["failed"] = " ".join(str(error).split())[:200] or type(error).__name__
        known[name] = record
        record |= {
            f"ratio_to_{other}": _ratio(record, known.get(other)) for other in (*_references(operation), "chunked")
        }
        yield record


def _inputs(operation: str, shape: AttentionShape, dtype: str) -> tuple[Any, ...]:
    keys = iter(jax.random.split(jax.random.key(0), 8))

    def of(*sizes: int) -> jax.Array:
        return jax.random.normal(next(keys), sizes, jnp.float32).astype(dtype)

    new = 1 if operation == "decode" else shape.length
    query = of(shape.batch, shape.heads, new, shape.head_dim)
    key, value = (of(shape.batch, shape.kv_heads, new, shape.head_dim) for _ in range(2))
    lengths = jnp.full((shape.batch,), shape.length, jnp.int32)
    if operation == "causal":
        return query, key, value
    if operation == "policy":
        return query, key, value, jnp.ones((shape.batch, shape.length)), lengths
    cache = tuple(of(1, shape.batch, shape.kv_heads, shape.length, shape.head_dim) for _ in range(2))
    return query, key, value, [cache], jnp.zeros((), jnp.int32), lengths


def _door(operation: str, name: str) -> Callable[..., jax.Array]:
    return functools.partial(getattr(api, _DOOR[operation]), implementation=name)


def _references(operation: str) -> dict[str, Callable[..., jax.Array]]:
    """`jax.nn.dot_product_attention`, which has no policy: plain causal attention stands for it."""

    def plain(query: jax.Array, key: jax.Array, value: jax.Array, *rest: Any, backend: Any) -> jax.Array:
        if operation == "decode":
            # Of its own layout, and without the token itself: as fast as it can be.
            key, value = (x[0] for x in rest[0][0])
        by_length = (x.swapaxes(1, 2) for x in (query, key, value))
        out = jax.nn.dot_product_attention(*by_length, is_causal=operation != "decode", implementation=backend)
        return out.swapaxes(1, 2)

    return {f"jax_{backend}": functools.partial(plain, backend=backend) for backend in ("xla", "cudnn")}


def _numbers(
    operation: str,
    shape: AttentionShape,
    function: Callable[..., jax.Array],
    inputs: tuple[Any, ...],
    machine: Machine,
    least: float,
) -> dict[str, Any]:
    pairs = shape.length + 1 if operation == "decode" else shape.length * (shape.length + 1) / 2
    flops = 4.0 * shape.batch * shape.heads * shape.head_dim * pairs
    nbytes = sum(x.nbytes for x in jax.tree.leaves(inputs)) + inputs[0].nbytes
    forward = measure(jax.jit(function), *inputs, least=least)
    numbers = {
        "forward_seconds": forward,
        "forward_tflops": flops / forward / 1e12,
        "forward_share_of_matmul": flops / forward / machine.flops,
        "forward_gb_per_second": nbytes / forward / 1e9,
        "forward_share_of_bandwidth": nbytes / forward / machine.bandwidth,
    }
    if operation == "decode":
        return numbers

    def loss(query: jax.Array, key: jax.Array, value: jax.Array, *rest: Any) -> jax.Array:
        return jnp.sum(function(query, key, value, *rest).astype(jnp.float32))

    both = measure(jax.jit(jax.grad(loss, argnums=(0, 1, 2))), *inputs, least=least)
    flops *= 1 + _BACKWARD
    return numbers | {
        "both_seconds": both,
        "both_tflops": flops / both / 1e12,
        "both_share_of_matmul": flops / both / machine.flops,
    }


def _ratio(record: dict[str, Any], other: dict[str, Any] | None) -> dict[str, float] | None:
    """How many times as fast, forward and both ways."""
    if other is None or "failed" in record or "failed" in other:
        return None
    return {
        way: other[f"{way}_seconds"] / record[f"{way}_seconds"]
        for way in ("forward", "both")
        if f"{way}_seconds" in record
    }
