"""Policy attention around the kernels: shapes, padding, residuals, and what of the gradient is a sum over rows.

B batch, H query heads, G key/value heads, S sequence, E head dimension.

One row `policy` per sample says all about its keys: the keep policy, -1 for padding. With s the scores, m a row's
largest score over the visible keys, w the key's policy (1 for the query's own), n the sample's real keys,

    out_i = (sum_j exp(s_ij - m_i) w_ij v_j + leak) / (sum_j exp(s_ij - m_i) w_ij + eps),  leak = eps / n sum_j v_j.

The gradient flows through m too. It comes down to one number per query, (cotangent_i · leak - eps cotangent_i · out_i)
/ denominator_i, which the key that holds the maximum receives. With eps 0 both vanish; `attention` then hides dropped
keys altogether, so that none of them can hold the maximum and let the denominator underflow.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Bool, Float, Int

from dynllava_jax.kernels.policy_tile import Rows

RESIDUALS = ("attention_in", "attention_out", "attention_rows")
"""Names of all that a backward pass needs but the policy, for `jax.checkpoint_policies.save_only_these_names`.

Queries, keys and values are among it: what they are made of, such as products that are then rotated, need not be kept.
"""

Make = Callable[[Array], "Kernel"]
"""The kernel for some queries, or NotImplementedError."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a kernel computes.

    Attributes:
        eps: added to the denominator.
        hide: see `policy_tile.sight`; then the policy has no gradient.
        head_dim: of the scores' scale; arrays may be padded beyond it.
        argmax: the forward pass notes which key has each row's largest score; only a gradient wants to know.
    """

    eps: float
    hide: bool
    head_dim: int
    argmax: bool = False


class Forward(NamedTuple):
    """What a forward kernel gives; see `policy_tile.Rows`."""

    out: Float[Array, "B H S E"]
    highest: Float[Array, "B H S"]
    inverse: Float[Array, "B H S"]
    argmax: Int[Array, "B H S"]


class Backward(NamedTuple):
    """What the backward kernels give. Keys, values and policy receive a gradient from every query head."""

    query: Float[Array, "B H S E"]
    key: Float[Array, "B H S E"]
    value: Float[Array, "B H S E"]
    policy: Float[Array, "B H S"]


@runtime_checkable
class Kernel(Protocol):
    """A pair of kernels. It is hashable: equal ones are compiled once."""

    def padded(self, length: int, head_dim: int) -> tuple[int, int]:
        """Sequence length and head dimension that it works on."""
        ...

    def forward(
        self,
        query: Float[Array, "B H S E"],
        key: Float[Array, "B G S E"],
        value: Float[Array, "B G S E"],
        policy: Float[Array, "B S"],
        leak: Float[Array, "B G E"],
        rule: Rule,
    ) -> Forward:
        """The output, and what is kept of its rows."""
        ...

    def backward(
        self,
        query: Float[Array, "B H S E"],
        key: Float[Array, "B G S E"],
        value: Float[Array, "B G S E"],
        policy: Float[Array, "B S"],
        cotangent: Float[Array, "B H S E"],
        rows: Rows,
        rule: Rule,
    ) -> Backward:
        """The gradients, without what values receive through the leak."""
        ...


def attention(
    make: Make,
    query: Float[Array, "B H S E"],
    key: Float[Array, "B G S E"],
    value: Float[Array, "B G S E"],
    *,
    keep: Bool[Array, "B S"] | None = None,
) -> Float[Array, "B H S E"]:
    """See `xla.attention`. Raises NotImplementedError as `make` does."""
    policy = jnp.ones((query.shape[0], query.shape[2])) if keep is None else keep.astype(jnp.float32)
    return _attend(make(query), query, key, value, policy, eps=0.0, hide=True)


def policy_attention(
    make: Make,
    query: Float[Array, "B H S E"],
    key: Float[Array, "B G S E"],
    value: Float[Array, "B G S E"],
    policy: Float[Array, "B S"],
    lengths: Int[Array, " B"],
    *,
    eps: float = 1e-6,
    causal: bool = True,
) -> Float[Array, "B H S E"]:
    """See `xla.policy_attention`.

    Raises:
        NotImplementedError: without a causal mask, or as `make` does.
    """
    if not causal:
        raise NotImplementedError("it serves causal attention only")
    real = jnp.arange(query.shape[2]) < lengths[:, None]
    policy = jnp.where(real, policy.astype(jnp.float32), -1.0)
    return _attend(make(query), query, key, value, policy, eps=eps, hide=False)


def _attend(
    kernel: Kernel, query: Array, key: Array, value: Array, policy: Array, *, eps: float, hide: bool
) -> Float[Array, "B H S E"]:
    length, head_dim = query.shape[2:]
    rows, columns = (new - old for new, old in zip(kernel.padded(length, head_dim), (length, head_dim), strict=True))
    # As they are given: padded ones would take more memory, and padding takes no time to speak of.
    query, key, value = (checkpoint_name(x, RESIDUALS[0]) for x in (query, key, value))
    query, key, value = (jnp.pad(x, ((0, 0), (0, 0), (0, rows), (0, columns))) for x in (query, key, value))
    policy = jnp.pad(policy, ((0, 0), (0, rows)), constant_values=-1.0)
    out = _padded(kernel, Rule(eps, hide, head_dim), query, key, value, policy)
    return jnp.asarray(out)[:, :, :length, :head_dim]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _padded(kernel: Kernel, rule: Rule, query: Array, key: Array, value: Array, policy: Array) -> Array:
    return kernel.forward(query, key, value, policy, _leak(value, policy, rule.eps), rule).out


def _forward(
    kernel: Kernel, rule: Rule, query: Array, key: Array, value: Array, policy: Array
) -> tuple[Array, tuple[Array, Array, Array, Array, Forward]]:
    noted = dataclasses.replace(rule, argmax=not rule.hide)
    found = kernel.forward(query, key, value, policy, _leak(value, policy, rule.eps), noted)
    out = checkpoint_name(found.out, RESIDUALS[1])
    found = Forward(out, *(checkpoint_name(row, RESIDUALS[2]) for row in found[1:]))
    return out, (query, key, value, policy, found)


def _backward(
    kernel: Kernel, rule: Rule, kept: tuple[Array, Array, Array, Array, Forward], cotangent: Float[Array, "B H S E"]
) -> tuple[Array, Array, Array, Array]:
    query, key, value, policy, found = kept
    ratio = query.shape[1] // key.shape[1]
    slope = cotangent.astype(jnp.float32)
    delta = jnp.sum(slope * found.out.astype(jnp.float32), axis=-1)
    through = jnp.zeros_like(delta)
    if not rule.hide:
        leak = jnp.repeat(_leak(value, policy, rule.eps), ratio, axis=1)
        through = (jnp.sum(slope * leak[:, :, None], axis=-1) - rule.eps * delta) * found.inverse
    rows = Rows(found.highest, found.inverse, found.argmax, delta, through)
    found_slopes = kernel.backward(query, key, value, policy, cotangent, rows, rule)
    of_value = _over_group(found_slopes.value, ratio)
    if not rule.hide:
        each = _over_group(jnp.sum(slope * found.inverse[..., None], axis=2), ratio)
        real = policy[:, None, :, None] >= 0
        leaked = jnp.where(real, (_share(policy, rule.eps)[:, None, None] * each)[:, :, None], 0.0)
        of_value = of_value.astype(jnp.float32) + leaked
    return (
        found_slopes.query.astype(query.dtype),
        _over_group(found_slopes.key, ratio).astype(key.dtype),
        of_value.astype(value.dtype),
        jnp.zeros_like(policy) if rule.hide else jnp.sum(found_slopes.policy, axis=1),
    )


_padded.defvjp(_forward, _backward)


def _share(policy: Float[Array, "B S"], eps: float) -> Float[Array, " B"]:
    """What leaks to each of a sample's real keys."""
    return eps / jnp.maximum(jnp.sum(policy >= 0, axis=1), 1)


def _leak(value: Float[Array, "B G S E"], policy: Float[Array, "B S"], eps: float) -> Float[Array, "B G E"]:
    # A product: zeros to choose instead would be an array as large as the values in float32, made once and read in
    # every layer. So would the values be in float32 if this were an einsum.
    real = (policy >= 0).astype(jnp.float32)[:, None, :, None]
    total = jnp.sum(value.astype(jnp.float32) * real, axis=2)
    return _share(policy, eps)[:, None, None] * total


def _over_group(x: Float[Array, "B H *rest"], ratio: int) -> Float[Array, "B G *rest"]:
    return x if ratio == 1 else jnp.sum(x.reshape(x.shape[0], -1, ratio, *x.shape[2:]), axis=2)
