"""Case 03: attention under a keep policy, forward and backward.

B batch, H heads, N queries and keys, E head dimension.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from dynllava_jax.kernels import api, xla
from dynllava_jax.verify.cases import Case
from dynllava_jax.verify.computed import Computed
from dynllava_jax.verify.subject import Subject

_MASK = "attn_mask_padding"


def policy_attention(subject: Subject, case: Case) -> Computed:
    """03_masked_softmax: `kernels.api.policy_attention`, or `kernels.api.attention` where there is no policy.

    A variant's name starts with its mask: none, causal, or right padding on top of causal.
    """
    found = Computed()
    for variant in dict.fromkeys(name.split(".")[0] for name in case.outputs):
        _run(found, case, variant, subject.implementation)
    return found


def _run(found: Computed, case: Case, variant: str, implementation: api.Implementation) -> None:
    names = ("q", "k", "v", "cotangent")
    query, key, value, cotangent = (jnp.asarray(case.inputs[f"{variant}.{name}"]) for name in names)
    batch, heads, size, _ = query.shape
    lengths = np.full(batch, size, np.int32)
    if variant.startswith("padding"):
        # The last query of a causal mask sees every key that is not padding.
        lengths = np.sum(case.inputs[_MASK][:, 0, -1] == 0, axis=-1).astype(np.int32)
    policy = case.inputs.get(f"{variant}.policy")
    inputs: dict[str, Array] = {"q": query, "k": key, "v": value}
    if policy is None:
        attend = functools.partial(api.attention, implementation=implementation)
        weights = xla.attention_weights(query, key)
    else:
        inputs["policy"] = jnp.asarray(policy[..., 0])
        masks: dict[str, Any] = {"lengths": jnp.asarray(lengths), "causal": not variant.startswith("nomask")}
        weights = xla.policy_weights(query, key, inputs["policy"], **masks)
        attend = functools.partial(api.policy_attention, **masks, implementation=implementation)

    def both(*inputs: Array) -> tuple[Array, tuple[Array, ...]]:
        out, pull = jax.vjp(attend, *inputs)
        return out, pull(cotangent)

    out, slopes = jax.jit(both)(*inputs.values())
    padding = np.arange(size) >= lengths[:, None]
    of_heads = np.broadcast_to(padding[:, None], (batch, heads, size))
    found.put(f"{variant}.weights", weights.reshape(batch, heads, size, size), of_heads)
    found.put(f"{variant}.out", out, of_heads)
    for name, gradient in zip(inputs, slopes, strict=True):
        if name == "policy":
            found.put(f"{variant}.grad_policy", gradient[..., None], padding)
        else:
            found.put(f"{variant}.grad_{name}", gradient, of_heads)
