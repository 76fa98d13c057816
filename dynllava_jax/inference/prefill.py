"""One pass over a whole prompt (and, without a cache, over the answer so far): shallow stack, selection, deep stack.

B batch, S sequence, S2 deep sequence, M images, P image tokens of one image, K kept of P, D hidden size, V vocabulary,
L layers of the shallow stack, L2 of the deep one.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.data.batch import Batch
from dynllava_jax.data.spans import Kind
from dynllava_jax.inference.cache import AXES, Block, Cache, StackCache
from dynllava_jax.inference.selection import Rules, Selection, select, watch_prompt
from dynllava_jax.kernels import api
from dynllava_jax.model.decoder import StackOutput, run_stack
from dynllava_jax.model.dynllava import DynamicLlava, ImageTokens
from dynllava_jax.model.probe import NOTHING, Probe
from dynllava_jax.nn.constrain import constrain
from dynllava_jax.nn.rope import Rope, rope
from dynllava_jax.sparsify.policy import KeepPolicy, Threshold
from dynllava_jax.sparsify.select import take


@dataclasses.dataclass(frozen=True)
class PrefillPlan:
    """The static side of a pass: shapes, and what is switched on.

    Attributes:
        sparsity: what is dropped (`SparsityConfig.dense()`: nothing in the decoder).
        deep_length: S2, slots of the deep sequence; every sample's kept tokens must fit.
        shallow_capacity, deep_capacity: room in the caches; None: no cache is kept.
        keep_policy: rule for answer tokens that stand in the batch (decoding without a cache).
        probe: what to show besides.
        attention: implementation of attention (see `kernels.api`).
        dtype: compute dtype.
    """

    sparsity: SparsityConfig
    deep_length: int
    shallow_capacity: int | None = None
    deep_capacity: int | None = None
    keep_policy: KeepPolicy = Threshold()
    probe: Probe = NOTHING
    attention: api.Implementation = None
    dtype: str = "float32"


class PrefillOutput(NamedTuple):
    """What a pass leaves behind.

    Attributes:
        logits: float32, of the last real token; of every deep slot when the probe asks for logits.
        cache: both stacks', or None.
        selection: what was kept.
        origin: patch that each image token stands for, or None without images.
        kept_origin: the same of the kept ones.
        trace: residual stream after every layer of the shallow and of the deep stack, or None.
    """

    logits: Float[Array, "B V"] | Float[Array, "B S2 V"]
    cache: Cache | None
    selection: Selection
    origin: Int[Array, "B M P"] | None
    kept_origin: Int[Array, "B M K"] | None
    trace: tuple[Float[Array, "L B S D"], Float[Array, "L2 B S2 D"]] | None


def see(model: DynamicLlava, batch: Batch, keys: Key[Array, " B"], dtype: str) -> ImageTokens | None:
    """The batch's images as decoder inputs; None when it has room for none."""
    if batch.images is None:
        return None
    present = jnp.arange(batch.images.shape[1]) < batch.image_count[:, None]
    return model.image_tokens(batch.images, present, keys, jnp.dtype(dtype))


def prefill(
    model: DynamicLlava,
    batch: Batch,
    keys: Key[Array, " B"],
    plan: PrefillPlan,
    images: ImageTokens | None = None,
) -> PrefillOutput:
    """Runs the prompt through both stacks (paper section 3.3.2, stage 1).

    Args:
        model: the weights.
        batch: right-padded prompts with one slot per image token.
        keys: one PRNG key per sample, used by selectors that draw.
        plan: shapes and switches.
        images: what `see` gave for this batch, when the caller has it already.
    """
    config = model.config
    images = see(model, batch, keys, plan.dtype) if images is None else images
    features = None if images is None else images.features
    hidden = model.embed(batch.tokens, batch.kind == Kind.IMAGE, features, jnp.dtype(plan.dtype))

    def attend(query: Array, key: Array, value: Array, layer: Array) -> Array:
        del layer
        return api.attention(query, key, value, implementation=plan.attention)

    by = rope(config.decoder, batch.positions)
    watch = None if images is None else watch_prompt(model, batch, plan.sparsity)
    caching, trace = plan.shallow_capacity is not None, plan.probe.hidden
    shallow = run_stack(
        model.decoder.shallow, hidden, by, attend, capacity=plan.shallow_capacity, trace=trace, watch=watch
    )
    with jax.named_scope("selection"):
        slots = 0 if images is None else images.features.shape[1]
        rules = Rules(plan.sparsity, slots, plan.deep_length, plan.keep_policy, plan.probe)
        selection, hidden = select(model, batch, shallow, keys, rules)
        order = selection.order
        hidden = constrain(take(hidden, order), "batch", "seq", "embed")
        by = Rope(take(by.cos, order), take(by.sin, order))
    deep = run_stack(model.decoder.deep, hidden, by, attend, capacity=plan.deep_capacity, trace=trace)

    out = deep.hidden
    if not plan.probe.logits:
        out = jnp.take_along_axis(out, jnp.maximum(selection.lengths - 1, 0)[:, None, None], axis=1)[:, 0]
    cache = None
    if caching:
        cache = Cache(
            StackCache((_block(shallow),), batch.lengths),
            StackCache((_block(deep),), selection.lengths),
        )
    return PrefillOutput(
        logits=model.decoder.logits(out),
        cache=cache,
        selection=selection,
        origin=None if images is None else images.origin,
        kept_origin=_origin(images, selection),
        trace=(shallow.trace, deep.trace) if shallow.trace is not None and deep.trace is not None else None,
    )


def _origin(images: ImageTokens | None, selection: Selection) -> Int[Array, "B M K"] | None:
    if images is None:
        return None
    if selection.image_index is None:
        return images.origin
    return jnp.take_along_axis(images.origin, selection.image_index, axis=2)


def _block(output: StackOutput) -> Block:
    return Block(*(constrain(kept, *AXES) for kept in output.keys_values()))
