"""Attention alone, by every implementation that this platform compiles, beside what JAX ships.

B batch, H query heads, G key/value heads, S sequence, C cache capacity, E head dimension.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from dynllava_jax.benchmark.roofline import arithmetic, traffic
from dynllava_jax.benchmark.timing import Machine, measure
from dynllava_jax.errors import InputError
from dynllava_jax.kernels import api

OPERATIONS = ("causal", "policy", "decode")
"""Prefill, the deep layers in training, and one new token against a full cache."""

_DOOR = {"causal": "attention", "policy": "policy_attention", "decode": "cached_attention"}
_TRAINED = {"causal": 3, "policy": 4}
"""How many arguments get gradients: query, key, value, and the policy."""
_BACKWARD = 2.5
"""Matrix products of the backward pass by those of the forward pass; the policy's gradient takes none."""


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


@dataclasses.dataclass(frozen=True, eq=False)
class Contender:
    """An implementation with its arguments, each in its own layout; the first `trained` ones get gradients.

    `pairs` are the queries and keys of one head that meet.
    """

    function: Callable[..., jax.Array]
    inputs: tuple[Any, ...]
    trained: int
    pairs: float

    def both(self, cotangent: jax.Array, *inputs: Any) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        """Output and gradients, as a training step wants them."""
        fixed = inputs[self.trained :]
        out, back = jax.vjp(lambda *trained: self.function(*trained, *fixed), *inputs[: self.trained])
        return out, back(cotangent.astype(out.dtype))

    def bytes(self, both: bool) -> int:
        """What has to be read or written once at least: arguments and output, cotangent and gradients.

        What an implementation keeps or reads again in between is its own affair.
        """
        moved = sum(x.nbytes for x in jax.tree.leaves(self.inputs)) + self.inputs[0].nbytes
        more = self.inputs[0].nbytes + sum(x.nbytes for x in self.inputs[: self.trained])
        return moved + (more if both else 0)


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
        InputError: as `check_names`, or one of `names` does not serve the shape here.
    """
    check_names(names)
    inputs = make_inputs(operation, shape, dtype)
    known: dict[str, dict[str, Any]] = {}
    # What is compared with comes first; decoding has nothing to cut into chunks.
    first = () if operation == "decode" else ("chunked",)
    own = tuple(dict.fromkeys((*first, *(names or (*api.chosen(machine.platform)[_DOOR[operation]], "xla")))))
    theirs = references(operation, inputs)
    for name, contender in {**theirs, **{name: door(operation, name, inputs) for name in own}}.items():
        record = {"operation": operation, **dataclasses.asdict(shape), "dtype": dtype, "implementation": name}
        try:
            for way in ("forward", "both") if contender.trained else ("forward",):
                record |= _numbers(way, shape, contender, machine, least)
        except Exception as error:  # whatever a backend raises: the others are still worth measuring
            if isinstance(error, InputError) and name in names:
                raise
            record["failed"] = " ".join(str(error).split())[:200] or type(error).__name__
        known[name] = record
        record |= {f"ratio_to_{other}": ratio(record, known.get(other)) for other in (*theirs, "chunked")}
        yield record


def check_names(names: Sequence[str]) -> None:
    """Raises InputError for an implementation that the door does not know, or has not here, or that is interpreted."""
    for name in names:
        api.check_implementation(name, jax.devices()[0].platform)
        if "interpret" in name:
            raise InputError(f"{name} is run by an interpreter, whose time says nothing about the kernel's.")


def make_inputs(operation: str, shape: AttentionShape, dtype: str) -> tuple[Any, ...]:
    """Random arguments of the door's function."""
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


def door(operation: str, name: str, inputs: tuple[Any, ...]) -> Contender:
    """An implementation of the door."""
    function = functools.partial(getattr(api, _DOOR[operation]), implementation=name)
    # A token meets its own key too, which is not in the cache yet.
    pairs = inputs[3][0][0].shape[3] + 1.0 if operation == "decode" else _triangle(inputs[0].shape[2])
    return Contender(function, inputs, _TRAINED.get(operation, 0), pairs)


def references(operation: str, inputs: tuple[Any, ...]) -> dict[str, Contender]:
    """`jax.nn.dot_product_attention` on arrays that lie as it wants them, [B,S,H,E].

    It has no policy, plain causal attention stands for it; and it decodes without the token's own key and value.
    """
    key, value = (x[0] for x in inputs[3][0]) if operation == "decode" else inputs[1:3]
    by_length = tuple(x.swapaxes(1, 2) for x in (inputs[0], key, value))
    causal = operation != "decode"
    return {
        f"jax_{backend}": Contender(
            functools.partial(jax.nn.dot_product_attention, is_causal=causal, implementation=backend),
            by_length,
            3 if causal else 0,
            _triangle(key.shape[2]) if causal else float(key.shape[2]),
        )
        for backend in ("xla", "cudnn")
    }


def _triangle(length: int) -> float:
    """Pairs that the causal mask leaves."""
    return length * (length + 1) / 2


def _numbers(way: str, shape: AttentionShape, contender: Contender, machine: Machine, least: float) -> dict[str, float]:
    flops = 4.0 * shape.batch * shape.heads * shape.head_dim * contender.pairs
    if way == "forward":
        seconds = measure(jax.jit(contender.function), *contender.inputs, least=least)
    else:
        flops *= 1 + _BACKWARD
        query = contender.inputs[0]
        cotangent = jax.random.normal(jax.random.key(1), query.shape).astype(query.dtype)
        seconds = measure(jax.jit(contender.both), cotangent, *contender.inputs, least=least)
    nbytes = contender.bytes(both=way == "both")
    return arithmetic(way, seconds, flops, machine) | traffic(way, seconds, nbytes, machine)


def ratio(record: dict[str, Any], other: dict[str, Any] | None) -> dict[str, float] | None:
    """How many times as fast, each way that both of them can; None where there is none."""
    ways = [
        way for way in ("forward", "both") if other is not None and f"{way}_seconds" in record.keys() & other.keys()
    ]
    found = {way: other[f"{way}_seconds"] / record[f"{way}_seconds"] for way in ways if other is not None}
    return found or None
