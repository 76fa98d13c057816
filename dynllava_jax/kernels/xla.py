"""Attention in plain XLA: the truth that every kernel is compared with, and the default on CPU.

B batch, H query heads, G key/value heads, R = H/G queries per group, S sequence, Q queries of a part of it, N keys,
T new tokens, C cache capacity, L layers, E head dimension. Scores and softmax are float32.
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from dynllava_jax.kernels.layout import as_stored

Blocks = Sequence[tuple[Float[Array, "L B G _ E"], Float[Array, "L B G _ E"]]]
"""A stack's cache: blocks of keys and values whose capacities add up to the logical capacity."""


def attention(
    query: Float[Array, "B H S E"],
    key: Float[Array, "B G S E"],
    value: Float[Array, "B G S E"],
    *,
    keep: Bool[Array, "B S"] | None = None,
) -> Float[Array, "B H S E"]:
    """Causal self-attention. Padding stands on the right, so that no real query ever sees it.

    A key that `keep` drops is seen by its own query alone.
    """
    return combine(attention_weights(query, key, keep), value)


def attention_weights(
    query: Float[Array, "B H Q E"],
    key: Float[Array, "B G S E"],
    keep: Bool[Array, "B S"] | None = None,
    *,
    first: int | Int[Array, ""] = 0,
) -> Float[Array, "B G R Q S"]:
    """The weights of `attention`, of the queries from position `first` on."""
    apart = _apart(query, key, first)
    visible = apart >= 0
    if keep is not None:
        visible = visible & ((apart == 0) | keep[:, None, None, None, :])
    return jax.nn.softmax(jnp.where(visible, _scores(query, key), _per_chunk(-jnp.inf, first)), axis=-1)


def policy_attention(
    query: Float[Array, "B H S E"],
    key: Float[Array, "B G S E"],
    value: Float[Array, "B G S E"],
    policy: Float[Array, "B S"],
    lengths: Int[Array, " B"],
    *,
    eps: float = 1e-6,
    causal: bool = True,
) -> Float[Array, "B H S E"]:
    """Attention under a keep policy, as training uses it in the deep layers (paper section 3.3, MaskedSoftmax)."""
    return combine(policy_weights(query, key, policy, lengths, eps=eps, causal=causal), value)


def policy_weights(
    query: Float[Array, "B H Q E"],
    key: Float[Array, "B G S E"],
    policy: Float[Array, "B S"],
    lengths: Int[Array, " B"],
    *,
    eps: float = 1e-6,
    causal: bool = True,
    first: int | Int[Array, ""] = 0,
) -> Float[Array, "B G R Q S"]:
    """The weights of `policy_attention` (official `softmax_with_policy`), of the queries from position `first` on.

    A dropped key (policy 0) is invisible to all but itself. The maximum runs over dropped keys too, and the
    gradient flows through it. `eps / N` leaks to every real key; N and the leak count the sample's real keys
    only, so that padding changes nothing.
    """
    real = (jnp.arange(key.shape[2]) < lengths[:, None])[:, None, None, None, :]
    kept = _kept(query, key, policy, real, causal, first)
    leak = jnp.where(real, eps / jnp.maximum(lengths, 1)[:, None, None, None, None], 0.0)
    whole = jnp.sum(kept, axis=-1, keepdims=True) + eps
    whole = jnp.where(whole > 0.0, whole, 1.0)  # without a leak, padding may see nothing
    # Without a leak `whole` may also be 1e-30, and a quotient's gradient divides by its square.
    power = _to_one(whole)
    return (kept + leak) * power / (whole * power)


def _to_one(x: Float[Array, "*B"]) -> Float[Array, "*B"]:
    """A power of two, 1 or more, that brings a small number close to 1: multiplying by it rounds nothing."""
    _, exponent = jnp.frexp(jax.lax.stop_gradient(x))
    return jnp.ldexp(jnp.ones_like(x), jnp.clip(-exponent, 0, 126))


def lowest_denominator(
    query: Float[Array, "B H S E"],
    key: Float[Array, "B G S E"],
    policy: Float[Array, "B S"],
    lengths: Int[Array, " B"],
    *,
    eps: float = 1e-6,
) -> Float[Array, ""]:
    """The smallest denominator that a real query of `policy_attention` divides by, at most 1 + eps.

    Where a dropped key holds the maximum it falls to `eps`, and the policy's gradient grows to 1 / eps.
    """
    real = (jnp.arange(query.shape[2]) < lengths[:, None])[:, None, None, None, :]
    ratio = query.shape[1] // key.shape[1]

    def of_head(head: Int[Array, ""]) -> Float[Array, ""]:  # one head at a time: all scores at once would not fit
        one = jax.lax.dynamic_index_in_dim(query, head, 1), jax.lax.dynamic_index_in_dim(key, head // ratio, 1)
        sums = jnp.sum(_kept(*one, policy, real, causal=True), axis=-1) + eps
        return jnp.min(jnp.where(real[:, :, :, 0], sums, jnp.inf))

    return jnp.min(jax.lax.map(of_head, jnp.arange(query.shape[1])))


def _kept(
    query: Float[Array, "B H Q E"],
    key: Float[Array, "B G S E"],
    policy: Float[Array, "B S"],
    real: Bool[Array, "B 1 1 1 S"],
    causal: bool,
    first: int | Int[Array, ""] = 0,
) -> Float[Array, "B G R Q S"]:
    """The numerators of `policy_weights` before the leak: exp(score - highest), 0 where a key is dropped."""
    apart = _apart(query, key, first)
    scores = _scores(query, key)
    visible = jnp.logical_and(real, apart >= 0) if causal else jnp.broadcast_to(real, scores.shape)
    lowest, zero = _per_chunk(-jnp.inf, first), _per_chunk(0.0, first)
    highest = jnp.max(jnp.where(visible, scores, lowest), axis=-1, keepdims=True)
    highest = jnp.where(jnp.isfinite(highest), highest, 0.0)
    exponentials = jnp.where(visible, jnp.exp(jnp.where(visible, scores - highest, zero)), zero)
    return exponentials * jnp.where(apart == 0, 1.0, policy.astype(jnp.float32)[:, None, None, None, :])


def _per_chunk(constant: float, first: int | Int[Array, ""]) -> float | Float[Array, ""]:
    """A constant that, in a loop over chunks, depends on the chunk.

    JAX moves what depends on none out of a loop that it differentiates: here an array as large as all scores of one.
    """
    return constant if isinstance(first, int) else jnp.where(first < 0, 1.0, constant)


def cached_attention(
    query: Float[Array, "B H T E"],
    key: Float[Array, "B G T E"],
    value: Float[Array, "B G T E"],
    blocks: Blocks,
    layer: Int[Array, ""],
    lengths: Int[Array, " B"],
) -> Float[Array, "B H T E"]:
    """New tokens attend to the first `lengths` entries of the cache and, causally, to each other.

    The cache is read-only here: a token that will not be stored still sees itself.
    """
    keys = [_layer(k, layer) for k, _ in blocks]
    values = [_layer(v, layer) for _, v in blocks]
    scores, ends = [], [0]
    for cached in keys:
        start, stop = ends[-1], ends[-1] + cached.shape[2]
        filled = jnp.arange(start, stop) < lengths[:, None]
        scores.append(jnp.where(filled[:, None, None, None, :], _scores(query, cached), -jnp.inf))
        ends.append(stop)
    scores.append(jnp.where(_apart(query, key) >= 0, _scores(query, key), -jnp.inf))
    weights = jax.nn.softmax(jnp.concatenate(scores, axis=-1), axis=-1)
    parts = jnp.split(weights, ends[1:], axis=-1)
    outputs = [combine(part, v) for part, v in zip(parts, [*values, value], strict=True)]
    return sum(outputs[1:], outputs[0])


def query_weights(
    query: Float[Array, "B H E"], key: Float[Array, "B G N E"], lengths: Int[Array, " B"]
) -> Float[Array, "B H N"]:
    """Attention weights of one query per sample over its real keys (what attention-based selectors rank by)."""
    scores = _scores(query[:, :, None], key)[:, :, :, 0]
    real = (jnp.arange(key.shape[2]) < lengths[:, None])[:, None, None, :]
    weights = jax.nn.softmax(jnp.where(real, scores, jnp.finfo(jnp.float32).min), axis=-1)
    return weights.reshape(*query.shape[:2], -1)


def _scores(query: Float[Array, "B H S E"], key: Float[Array, "B G N E"]) -> Float[Array, "B G R S N"]:
    batch, heads, length, size = query.shape
    groups = key.shape[1]
    # XLA would merge two dimensions of rows by itself, and transpose the keys on the way.
    rows = query.reshape(batch, groups, -1, size)
    scores = jnp.einsum("bgme,bgne->bgmn", rows, key, preferred_element_type=jnp.float32)
    scores = scores.reshape(batch, groups, heads // groups, length, -1)
    return scores * (1.0 / math.sqrt(size))


def combine(weights: Float[Array, "B G R S N"], value: Float[Array, "B G N E"]) -> Float[Array, "B H S E"]:
    """Sums of values under the weights of every query."""
    batch, groups, ratio, length, count = weights.shape
    rows = weights.astype(value.dtype).reshape(batch, groups, ratio * length, count)
    out = jnp.einsum("bgmn,bgne->bgme", rows, value)
    return out.reshape(batch, groups * ratio, length, -1)


def _layer(stacked: Float[Array, "L B G C E"], layer: Int[Array, ""]) -> Float[Array, "B G C E"]:
    # Held as it is stored, a layer is not even copied out of its stack.
    return as_stored(jax.lax.dynamic_index_in_dim(stacked, layer, 0, keepdims=False))


def _apart(
    query: Float[Array, "B H Q E"], key: Float[Array, "B G N E"], first: int | Int[Array, ""] = 0
) -> Int[Array, "Q N"]:
    """How far each key stands before each query: 0 its own, negative those after it."""
    return first + jnp.arange(query.shape[2])[:, None] - jnp.arange(key.shape[2])
