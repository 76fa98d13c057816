"""The one door to attention: every layer comes through here, whatever computes it.

An implementation that cannot serve a shape, dtype or platform raises `NotImplementedError` with the reason, and
the door tries the next one; it says once, in the log, which one it took.
"""

import functools
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxtyping import Array, Bool, Float, Int

from dynllava_jax.errors import InputError
from dynllava_jax.kernels import decode_tpu, decode_triton, xla

Implementation = str | Sequence[str] | None
"""A name, names in order of preference, or None for the best of the platform that is compiled for."""

_ATTENTION: Mapping[str, Callable[..., Array]] = {"xla": xla.attention}
_POLICY: Mapping[str, Callable[..., Array]] = {"xla": xla.policy_attention}
_CACHED: Mapping[str, Callable[..., Array]] = {
    "xla": xla.cached_attention,
    "triton": decode_triton.cached_attention,
    "tpu": decode_tpu.cached_attention,
}

_BEST = ("xla",)
"""What None means. The same on every platform as long as there is one implementation."""

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
    return _dispatch("attention", _ATTENTION, implementation)(query, key, value, keep=keep)


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
    chosen = _dispatch("policy_attention", _POLICY, implementation)
    return chosen(query, key, value, policy, lengths, eps=eps, causal=causal)


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
    chosen = _dispatch("cached_attention", _CACHED, implementation)
    return chosen(query, key, value, blocks, layer, lengths)


def chosen(platform: str) -> dict[str, tuple[str, ...]]:
    """For each operation the implementations that `None` tries on a platform, in order."""
    del platform
    return dict.fromkeys(("attention", "policy_attention", "cached_attention"), _BEST)


def _dispatch(op: str, table: Mapping[str, Callable[..., Array]], wanted: Implementation) -> Callable[..., Array]:
    names = _BEST if wanted is None else (wanted,) if isinstance(wanted, str) else tuple(wanted)
    for name in names:
        if name not in table:
            raise InputError(f"{op} has no implementation {name!r}; there are {', '.join(table)}.")

    def call(*args: Any, **kwargs: Any) -> Array:
        reasons = []
        for name in names:
            try:
                result = table[name](*args, **kwargs)
            except NotImplementedError as error:
                reasons.append(f"{name}: {error}")
                continue
            _say_once(op, name, tuple(reasons))
            return result
        raise NotImplementedError(f"no implementation of {op} serves this call: {'; '.join(reasons)}")

    return call


@functools.cache
def _say_once(op: str, name: str, reasons: tuple[str, ...]) -> None:
    _log.info("%s runs as %s%s", op, name, f" (not {'; not '.join(reasons)})" if reasons else "")
