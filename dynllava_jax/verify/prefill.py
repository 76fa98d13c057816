"""Cases 04, 05, 08, 08b: a whole prompt through both stacks, dense or with tokens dropped.

B batch, S sequence, S2 deep sequence, L decoder layers, D hidden size, V vocabulary.
"""

import jax
import numpy as np
from jaxtyping import Int

from dynllava_jax.data.batch import Batch
from dynllava_jax.inference.cache import Cache
from dynllava_jax.inference.prefill import PrefillOutput
from dynllava_jax.model.dynllava import DynamicLlava
from dynllava_jax.verify.cases import Case
from dynllava_jax.verify.computed import Computed, spans_of
from dynllava_jax.verify.subject import Subject


def dense(subject: Subject, case: Case) -> Computed:
    """04_dense: nothing dropped; a prompt alone, a right-padded batch of two, greedy tokens."""
    sparsity, images = subject.sparsity(case), case.images()
    found = Computed()

    ids = case.inputs["b1.input_ids"]
    out = subject.prefill(subject.prompts(ids, images), sparsity)
    found.put("b1.logits", out.logits[:, -case.outputs["b1.logits"].shape[1] :])
    for layer, hidden in enumerate(hidden_of(out)):
        found.put(f"b1.hidden_after_layer_{layer}", hidden)
    if (recorded := case.outputs.get("b1.greedy_ids")) is not None:  # half precision has none
        greedy, _ = subject.greedy(ids, images[0], sparsity, recorded.shape[1])
        found.put("b1.greedy_ids", greedy)

    real = case.inputs["b2.attention_mask"]
    samples = [subject.sample(ids[row]) for ids, row in zip(case.inputs["b2.input_ids"], real, strict=True)]
    batch = subject.batch(samples, [[image] for image in images])
    out = subject.prefill(batch, sparsity)
    padding = np.arange(batch.tokens.shape[1]) >= batch.lengths[:, None]
    found.put("b2.hidden_after_last_layer", hidden_of(out)[-1], padding)
    found.put("b2.sample1_last_logits", out.logits[1, batch.lengths[1] - 1])
    return found


def sparse(subject: Subject, case: Case) -> Computed:
    """05_prefill_kv, 08_instruct_prefill, 08b: image tokens, and with it instruction tokens, leave the deep stack."""
    sample = subject.sample(case.inputs["input_ids"][0])
    batch = subject.batch([sample], [list(case.images()[:1])])
    out = subject.prefill(batch, subject.sparsity(case))
    selection = out.selection
    found = Computed()
    if selection.image_logits is not None:
        found.put("image_logits", selection.image_logits[:, 0])
        found.put("image_keep_score", jax.nn.log_softmax(selection.image_logits[:, 0])[..., 0])
    if selection.image_index is not None:
        found.put("image_keep_index", selection.image_index[:, 0])
    found.put("position_ids_before", batch.positions)
    found.put("position_ids_after", positions_after(batch, out))
    for layer, hidden in enumerate(hidden_of(out)):
        found.put(f"hidden_after_layer_{layer}", hidden)
    found.put("logits", out.logits[:, : int(selection.lengths[0])])
    found.put("last_logits", last_logits(out))
    assert out.cache is not None
    lengths = layer_lengths(subject.model, out.cache)
    found.put("cache_len", lengths.max(axis=1))
    found.put("cache_true_len", lengths)
    for layer, (key, value) in enumerate(_stored(out.cache)):
        found.put(f"key_{layer}", key)
        found.put(f"value_{layer}", value)
    # The predictor judges the whole last instruction but for the prompt's very last token, which always stays.
    start, end = sample.spans()["last_instruct"]
    if selection.text_logits is not None:
        found.put("instruct_logits", selection.text_logits[:, start : end - 1])
        found.put("instruct_keep_index", np.flatnonzero(selection.keep[0, start : end - 1])[None])
    found.info["info.input_embeds_indices_before"] = spans_of([sample])
    return found


def last_logits(out: PrefillOutput) -> np.ndarray:
    """[B, V] at each sample's last kept token, which is its last token."""
    lengths = np.asarray(out.selection.lengths)
    return np.asarray(out.logits)[np.arange(len(lengths)), lengths - 1]


def positions_after(batch: Batch, out: PrefillOutput) -> Int[np.ndarray, "B S2"]:
    """The original positions of the tokens that enter the deep stack."""
    order = np.asarray(out.selection.order)[:, : _longest(out)]
    return np.take_along_axis(np.asarray(batch.positions), order, axis=1)


def hidden_of(out: PrefillOutput) -> list[np.ndarray]:
    """The residual stream after each layer, [B, S, D], the deep ones cut to the tokens that entered."""
    assert out.trace is not None
    shallow, deep = out.trace
    return [*np.asarray(shallow), *np.asarray(deep)[:, :, : _longest(out)]]


def layer_lengths(model: DynamicLlava, cache: Cache) -> Int[np.ndarray, "L B"]:
    """Tokens that each layer holds of each sample (official `true_cache_length`)."""
    shallow = model.config.sparsity.sparse_layer
    deep = model.config.decoder.num_layers - shallow
    return np.stack([np.asarray(cache.shallow.length)] * shallow + [np.asarray(cache.deep.length)] * deep)


def _stored(cache: Cache) -> list[tuple[np.ndarray, np.ndarray]]:
    """Keys and values of each layer, [B, G, T, E], cut to what is held."""
    stored = []
    for stack in (cache.shallow, cache.deep):
        (block,) = stack.blocks
        held = int(np.max(stack.length))
        stored += zip(np.asarray(block.key)[..., :held, :], np.asarray(block.value)[..., :held, :], strict=True)
    return stored


def _longest(out: PrefillOutput) -> int:
    return int(np.max(out.selection.lengths))
