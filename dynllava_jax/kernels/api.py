"""The one door to attention: every layer comes through here, whatever computes it.

An implementation that cannot serve a shape, dtype or platform raises `NotImplementedError` with the reason, and
the door tries the next one; it says once, in the log, which one it took. When none of those named serves a call, that
is an `InputError`.

`xla` is the truth. `chunked` holds the scores of some queries at a time. `triton` and `tpu` are kernels; with
`-interpret` they run as plain JAX on any platform, slowly, to be compared.

B batch, H query heads, G key/value heads, R = H/G queries per group, S sequence, T new tokens, E head dimension.
"""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Array, Bool, Float, Int

from dynllava_jax.errors import InputError
from dynllava_jax.kernels import (
    chunked,
    decode_join,
    decode_tpu,
    decode_triton,
    policy_join,
    policy_tpu,
    policy_triton,
    xla,
)
from dynllava_jax.kernels.policy_join import RESIDUALS as RESIDUALS
from dynllava_jax.kernels.target import target
from dynllava_jax.nn.constrain import Axes, compiled_for, per_shard

Implementation = str | Sequence[str] | None
"""A name, names in order of preference, or None for the best of the platform that is compiled for."""

_KERNELS: Mapping[str, tuple[policy_join.Make, decode_join.DecodeKernel]] = {
    "triton": (policy_triton.kernel, decode_triton.kernel()),
    "tpu": (policy_tpu.kernel, decode_tpu.kernel()),
    "triton-interpret": (
        functools.partial(policy_triton.kernel, interpret=True),
        decode_triton.kernel(interpret=True),
    ),
    "tpu-interpret": (
        functools.partial(policy_tpu.kernel, interpret=True),
        decode_tpu.kernel(interpret=True),
    ),
}
"""What computes whole sequences, and what reads a cache."""

_Table = Mapping[str, Callable[..., Array]]
_ATTENTION: _Table = {"xla": xla.attention, "chunked": chunked.attention} | {
    name: functools.partial(policy_join.attention, make) for name, (make, _) in _KERNELS.items()
}
_POLICY: _Table = {"xla": xla.policy_attention, "chunked": chunked.policy_attention} | {
    name: functools.partial(policy_join.policy_attention, make) for name, (make, _) in _KERNELS.items()
}
# Chunks: a handful of queries leaves nothing to cut.
_CACHED: _Table = {"xla": xla.cached_attention, "chunked": xla.cached_attention} | {
    name: functools.partial(decode_join.cached_attention, kernel) for name, (_, kernel) in _KERNELS.items()
}

_BEST = {"cpu": ("xla",), "gpu": ("triton", "chunked", "xla"), "tpu": ("tpu", "chunked", "xla")}
"""What None means on a platform."""
_ONLY_ON = {"triton": "gpu", "tpu": "tpu"}
_PARTITIONED = ("xla", "chunked")
"""XLA splits these over a mesh by itself. Kernels it cannot look into: each device runs its own; and a cache it would
gather, whoever reads it."""

_GROUPED: Axes = ("batch", "kv_heads", None, "seq", None)
_HEADS: Axes = ("batch", "kv_heads", "seq", None)

_log = logging.getLogger(__name__)


def attention(
    query: Float[Array, "B H S E"],
    key: Float[Array, "B G S E"],
    value: Float[Array, "B G S E"],
    *,
    keep: Bool[Array, "B S"] | None = None,
    implementation: Implementation = None,
) -> Float[Array, "B H S E"]:
    """Causal self-attention over right-padded sequences; rows of padding are undefined but finite.

    A key that `keep` drops is seen by its own query alone; None keeps all.
    """
    masks = {} if keep is None else {"keep": (keep, ("batch", "seq"))}
    keys = {"key": (key, _HEADS), "value": (value, _HEADS)}
    return _dispatch("attention", _ATTENTION, implementation, query, keys | masks)


def policy_attention(
    query: Float[Array, "B H S E"],
    key: Float[Array, "B G S E"],
    value: Float[Array, "B G S E"],
    policy: Float[Array, "B S"],
    lengths: Int[Array, " B"],
    *,
    eps: float = 1e-6,
    causal: bool = True,
    implementation: Implementation = None,
) -> Float[Array, "B H S E"]:
    """Attention under a keep policy (see `xla.policy_weights` for the formula)."""
    keys = {"key": (key, _HEADS), "value": (value, _HEADS)}
    masks = {"policy": (policy, ("batch", "seq")), "lengths": (lengths, ("batch",))}
    return _dispatch("policy_attention", _POLICY, implementation, query, keys | masks, eps=eps, causal=causal)


def cached_attention(
    query: Float[Array, "B H T E"],
    key: Float[Array, "B G T E"],
    value: Float[Array, "B G T E"],
    blocks: xla.Blocks,
    layer: Int[Array, ""],
    lengths: Int[Array, " B"],
    *,
    implementation: Implementation = None,
) -> Float[Array, "B H T E"]:
    """New tokens against the stacked cache of their stack plus themselves; no layer of the cache is copied out."""
    keys = {"key": (key, _HEADS), "value": (value, _HEADS)}
    cache = {"blocks": (blocks, ("layers", "batch", "kv_heads", None, None)), "layer": (layer, ())}
    return _dispatch(
        "cached_attention", _CACHED, implementation, query, keys | cache | {"lengths": (lengths, ("batch",))}
    )


def check_name(name: str) -> None:
    """Raises InputError when no operation has an implementation of this name."""
    if name not in _ATTENTION:
        raise InputError(f"attention has no implementation {name!r}; there are {', '.join(_ATTENTION)}.")


def check_implementation(wanted: Implementation, platform: str) -> None:
    """Raises InputError for a name that no operation has, or where none of those named can run on the platform."""
    names = _named(wanted)
    if wanted is not None and not names:
        raise InputError(f"attention names no implementation; name some of {', '.join(_ATTENTION)}, or leave it out.")
    for name in names:
        check_name(name)
    if names and not any(_ONLY_ON.get(name, platform) == platform for name in names):
        where = "; ".join(f"{name} runs on a {_ONLY_ON[name]} only" for name in names)
        raise InputError(f"attention: {where}, and this is a {platform}; name another, or leave it out.")


def _named(wanted: Implementation) -> tuple[str, ...]:
    return () if wanted is None else (wanted,) if isinstance(wanted, str) else tuple(wanted)


def chosen(platform: str) -> dict[str, tuple[str, ...]]:
    """For each operation the implementations that `None` tries on a platform, in order."""
    return dict.fromkeys(("attention", "policy_attention", "cached_attention"), _best(platform))


def _best(platform: str) -> tuple[str, ...]:
    return _BEST.get(platform, ("chunked", "xla"))


def _dispatch(
    op: str,
    table: _Table,
    wanted: Implementation,
    query: Float[Array, "B H S E"],
    operands: Mapping[str, tuple[Any, Axes]],
    **options: Any,
) -> Float[Array, "B H S E"]:
    """Asks one implementation after the other. `operands`: name -> array, or tree of arrays, and its axes' names."""
    platform = target().platform
    names = _best(platform) if wanted is None else _named(wanted)
    for name in names:
        check_name(name)
    reasons = []
    for name in names:
        function = functools.partial(table[name], **options)
        try:
            if (only := _ONLY_ON.get(name, platform)) != platform:
                raise NotImplementedError(f"it runs on a {only} only, not on a {platform}")
            if (name in _PARTITIONED and table is not _CACHED) or compiled_for() is None:
                result = function(query, **{operand: array for operand, (array, _) in operands.items()})
            else:
                result = _on_each_device(function, query, operands)
        except NotImplementedError as error:
            reasons.append(f"{name}: {error}")
            continue
        _say_once(op, name, tuple(reasons))
        return result
    raise InputError(f"No attention that was named serves {op} here; name xla last ({'; '.join(reasons)}).")


def _on_each_device(
    function: Callable[..., Array], query: Float[Array, "B H S E"], operands: Mapping[str, tuple[Any, Axes]]
) -> Float[Array, "B H S E"]:
    """`function` on the samples and heads of one device. Queries are split as their keys are, group by group."""
    batch, heads, length, size = query.shape
    groups = operands["key"][0].shape[1]

    def own(grouped: Float[Array, "B G R S E"], *arrays: Any) -> Float[Array, "B G R S E"]:
        heads = grouped.reshape(grouped.shape[0], -1, *grouped.shape[3:])
        return function(heads, **dict(zip(operands, arrays, strict=True))).reshape(grouped.shape)

    arrays, axes = zip(*operands.values(), strict=True)
    grouped = query.reshape(batch, groups, heads // groups, length, size)
    return per_shard(own, grouped, *arrays, axes=(_GROUPED, *axes), out=_GROUPED).reshape(query.shape)


@functools.cache
def _say_once(op: str, name: str, reasons: tuple[str, ...]) -> None:
    _log.info("%s runs as %s%s", op, name, f" (not {'; not '.join(reasons)})" if reasons else "")
