"""New tokens on top of a cache: one generated token, or a whole new instruction.

B batch, T new tokens, D hidden size, V vocabulary, L layers of one stack.
"""

import dataclasses
import functools
from typing import Literal, NamedTuple, cast

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.inference.cache import Cache, StackCache
from dynllava_jax.inference.selection import text_logits
from dynllava_jax.kernels import api
from dynllava_jax.kernels.products import fused_products
from dynllava_jax.model.decoder import Attend, run_stack
from dynllava_jax.model.dynllava import DynamicLlava
from dynllava_jax.model.fused import run_fused
from dynllava_jax.model.probe import NOTHING, Probe
from dynllava_jax.nn.pieces import FEW_TOKENS
from dynllava_jax.nn.rope import rope
from dynllava_jax.sparsify.selector import TokenView


@dataclasses.dataclass(frozen=True)
class ExtendPlan:
    """The static side of a pass over new tokens.

    Attributes:
        sparsity: what is dropped.
        judge: which predictor decides what the deep cache keeps: of a generated token or of an instruction.
        probe, attention, dtype: as in `PrefillPlan`.
        products: fused kernels for the products of one new token a sample (`kernels.products`); None: by XLA.
        in_pieces: XLA's products of few new tokens take the weights piece by piece (`nn.pieces`): on CPUs.
    """

    sparsity: SparsityConfig
    judge: Literal["output", "instruct"]
    probe: Probe = NOTHING
    attention: api.Implementation = None
    dtype: str = "float32"
    products: str | None = None
    in_pieces: bool = False


class ExtendOutput(NamedTuple):
    """What a pass leaves behind.

    Attributes:
        logits: float32, of the last new token; of every new token when the probe asks for logits.
        cache: with the new tokens in the shallow stack and the kept ones in the deep stack.
        keep: which new tokens the deep stack stores.
        text_logits: the predictor's keep and drop logits, or None when nobody judged.
        trace: residual stream after every layer, or None.
    """

    logits: Float[Array, "B V"] | Float[Array, "B T V"]
    cache: Cache
    keep: Bool[Array, "B T"]
    text_logits: Float[Array, "B T 2"] | None
    trace: Float[Array, "L B T D"] | None


def extend(
    model: DynamicLlava,
    tokens: Int[Array, "B T"],
    lengths: Int[Array, " B"],
    cache: Cache,
    keys: Key[Array, " B"],
    plan: ExtendPlan,
    answered: Int[Array, " B"] | None = None,
) -> ExtendOutput:
    """Runs new tokens through both stacks (paper section 3.3.2, stage 3: online KV compression).

    Every new token attends to the cache and to all new tokens before it, kept or not; the decision says only what
    stays for later calls (official behaviour, see "Kept as it is" in `docs/differences.md`).

    Args:
        model: the weights.
        tokens: right-padded new tokens.
        lengths: real new tokens of each sample; 0 leaves a sample untouched.
        cache: what was seen so far; needs room for the new tokens.
        keys: one PRNG key per sample, for selectors that draw.
        plan: switches.
        answered: tokens of the running answer before these (None: 0), for selectors that count.
    """
    hidden = model.decoder.embed(tokens, jnp.dtype(plan.dtype))
    steps = jnp.arange(tokens.shape[1])
    real = steps < lengths[:, None]
    by = rope(model.config.decoder, cache.shallow.length[:, None] + steps)
    trace, count = plan.probe.hidden, tokens.shape[1]
    products = fused_products(plan.products) if count == 1 else None
    in_pieces = plan.in_pieces and tokens.size <= FEW_TOKENS
    run = functools.partial(run_stack, capacity=count, trace=trace, in_pieces=in_pieces)
    if products is not None:
        run = functools.partial(run_fused, products, trace=trace)
    shallow = run(model.decoder.shallow, hidden, by, _attend(cache.shallow, plan))

    counted = steps + (0 if answered is None else answered[:, None])
    rate = getattr(plan.sparsity, f"{plan.judge}_keep_rate")
    view = TokenView(shallow.hidden, jnp.broadcast_to(counted, tokens.shape), keys, rate)
    keep, logits = _judge(model, view, lengths, plan)
    deep = run(model.decoder.deep, shallow.hidden, by, _attend(cache.deep, plan))

    out = deep.hidden
    if not plan.probe.logits:
        out = jnp.take_along_axis(out, jnp.maximum(lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    return ExtendOutput(
        logits=model.decoder.logits(out, in_pieces=in_pieces),
        cache=Cache(
            cache.shallow.append(*shallow.keys_values(), real),
            cache.deep.append(*deep.keys_values(), real & keep),
        ),
        keep=keep,
        text_logits=logits,
        trace=None if shallow.trace is None else jnp.concatenate([shallow.trace, cast(Array, deep.trace)]),
    )


def _attend(cache: StackCache, plan: ExtendPlan) -> Attend:
    def attend(query: Array, key: Array, value: Array, layer: Array) -> Array:
        return api.cached_attention(query, key, value, cache.blocks, layer, cache.length, implementation=plan.attention)

    return attend


def _judge(
    model: DynamicLlava, view: TokenView, lengths: Int[Array, " B"], plan: ExtendPlan
) -> tuple[Bool[Array, "B T"], Float[Array, "B T 2"] | None]:
    shape = view.positions.shape
    predictor = getattr(model, f"{plan.judge}_predictor")
    if getattr(plan.sparsity, f"{plan.judge}_selector") is None or predictor is None:
        return jnp.ones(shape, bool), None
    logits = text_logits(predictor, view)
    keep = logits[..., 0] > logits[..., 1]
    if plan.judge == "instruct":
        # The last token of an instruction is about to be answered: always stored.
        keep = keep | (jnp.arange(shape[1]) == lengths[:, None] - 1)
    return keep, logits
