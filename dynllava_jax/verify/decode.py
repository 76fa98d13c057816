"""Cases 06, 09, 09b: tokens fed on top of a cache, one at a time or a whole instruction at once.

B batch, T steps, L decoder layers, D hidden size, V vocabulary.
"""

from typing import Any

import numpy as np
from jaxtyping import Int

from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.inference.cache import Cache
from dynllava_jax.inference.extend import ExtendOutput
from dynllava_jax.verify.cases import Case
from dynllava_jax.verify.computed import Computed
from dynllava_jax.verify.prefill import last_logits, layer_lengths
from dynllava_jax.verify.subject import Subject

_PHANTOM = "the official batch attends to phantom zero keys (docs/differences.md); ours has none, see b2clean"


def teacher_forced(subject: Subject, case: Case) -> Computed:
    """06_decode_kv: one sample, two samples in one batch, and what the engine generates by itself.

    The batch of two is compared with what the official code gives each sample alone (`b2clean`), and its decisions
    and lengths with the official batch (`b2`), where the phantom keys of that do not reach.
    """
    sparsity, images = subject.sparsity(case), case.images()
    prompts, answers = case.inputs["input_ids"], case.inputs["answer_ids"]
    found = Computed()
    for name, rows in (("b1", 1), ("b2", len(prompts))):
        opened = subject.prefill(subject.prompts(prompts[:rows], images), sparsity, room=answers.shape[1])
        assert opened.cache is not None
        steps, _ = feed(subject, opened.cache, answers[:rows], sparsity)
        for prefix in (name, f"{name}clean") if rows > 1 else (name,):
            found.put_all(f"{prefix}.", steps)
            found.put(f"{prefix}.prefill_last_logits", last_logits(opened))
        if opened.selection.image_index is not None:
            found.put(f"{name}.image_keep_index", opened.selection.image_index[:, 0])
    for name in ("logits", "final_key_last_layer"):
        found.skip(f"b2.{name}", _PHANTOM)
    ids, logits = subject.greedy(prompts[:1], images[0], sparsity, case.outputs["gen.greedy_ids"].shape[1])
    found.put("gen.greedy_ids", ids)
    found.put("gen.logits", logits)
    return found


def turns(subject: Subject, case: Case) -> Computed:
    """09_multi_turn_kv, 09b: an answer, a second instruction in one call, a second answer."""
    sparsity = subject.sparsity(case)
    first, instruction, second = (case.inputs[f"{name}_ids"] for name in ("answer1", "instruction2", "answer2"))
    room = first.shape[1] + instruction.shape[1] + second.shape[1]
    opened = subject.prefill(subject.prompts(case.inputs["input_ids"], case.images()), sparsity, room)
    found = Computed()
    found.put("prefill_last_logits", last_logits(opened))
    assert opened.cache is not None
    found.put("prefill_cache_len", layer_lengths(subject.model, opened.cache).max(axis=1))

    steps, cache = feed(subject, opened.cache, first, sparsity)
    found.put_all("answer1.", steps)

    out = subject.extend(instruction, cache, sparsity, judge="instruct")
    lengths = layer_lengths(subject.model, out.cache)
    found.put("instruction2.position_ids", _positions(cache, instruction.shape[1]))
    if out.text_logits is not None:
        found.put("instruction2.logits_instruct", out.text_logits)
    found.put("instruction2.text_decision", out.keep)
    found.put("instruction2.logits", out.logits)
    assert out.trace is not None
    for layer, hidden in enumerate(out.trace):
        found.put(f"instruction2.hidden_after_layer_{layer}", hidden)
    found.put("instruction2.cache_len", lengths.max(axis=1))
    found.put("instruction2.cache_true_len", lengths)

    steps, _ = feed(subject, out.cache, second, sparsity)
    found.put_all("answer2.", steps)
    return found


def feed(
    subject: Subject, cache: Cache, answer: Int[np.ndarray, "B T"], sparsity: SparsityConfig
) -> tuple[dict[str, Any], Cache]:
    """Feeds an answer token by token; what the official code calls each thing, and the cache after it."""
    outs: list[ExtendOutput] = []
    positions, lengths = [], []
    for step in range(answer.shape[1]):
        positions.append(_positions(cache, 1))
        outs.append(subject.extend(answer[:, step : step + 1], cache, sparsity))
        cache = outs[-1].cache
        lengths.append(layer_lengths(subject.model, cache))
    true_lengths = np.stack(lengths)
    steps: dict[str, Any] = {
        "logits": np.concatenate([out.logits for out in outs], axis=1),
        "text_decision": np.concatenate([out.keep for out in outs], axis=1),
        "position": np.concatenate(positions, axis=1),
        "cache_len": true_lengths.max(axis=2),
        "cache_true_len": true_lengths,
        "hidden": np.stack([np.asarray(out.trace)[:, :, 0].swapaxes(0, 1) for out in outs], axis=1),
    }
    judged = [out.text_logits for out in outs if out.text_logits is not None]
    if judged:
        steps["text_logits"] = np.concatenate(judged, axis=1)
    return steps, cache


def _positions(cache: Cache, count: int) -> Int[np.ndarray, "B T"]:
    """Positions of the next tokens: the number of tokens seen. The official code has one row for equal ones."""
    positions = np.asarray(cache.shallow.length)[:, None] + np.arange(count, dtype=np.int32)
    return positions[:1] if np.all(positions == positions[0]) else positions
