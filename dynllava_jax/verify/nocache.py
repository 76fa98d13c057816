"""Case 07: generation without a cache: every step runs the prompt and the answer so far anew.

B batch, T answer tokens, V vocabulary.
"""

import jax
import numpy as np
from jaxtyping import Int

from dynllava_jax.data.batch import Batch
from dynllava_jax.data.spans import Kind
from dynllava_jax.inference import nocache
from dynllava_jax.inference.prefill import PrefillOutput
from dynllava_jax.sparsify.policy import OfficialTopN
from dynllava_jax.verify.cases import Case
from dynllava_jax.verify.computed import Computed
from dynllava_jax.verify.decode import feed
from dynllava_jax.verify.prefill import last_logits, positions_after
from dynllava_jax.verify.subject import Subject

_TWICE = "without an answer the official code feeds the last prompt token twice (docs/differences.md); ours never does"


def official_rule(subject: Subject, case: Case) -> Computed:
    """07_decode_nocache: `inference.nocache` under the named policy `OfficialTopN`, and the clean cached answer."""
    sparsity, images = subject.sparsity(case), case.images()
    prompts, answers = case.inputs["input_ids"], case.inputs["answer_ids"]
    steps = case.info["steps"]
    found = Computed()
    for rows in (1, len(prompts)):
        batch = subject.prompts(prompts[:rows], images, room=answers.shape[1])
        for fed in range(answers.shape[1] + 1):
            if fed in steps:
                out = subject.prefill(batch, sparsity, keep_policy=OfficialTopN())
                _put_step(found, f"b{rows}.j{fed:02d}", batch, out, fed)
            if fed < answers.shape[1]:
                batch = _append(batch, answers[:rows, fed], np.ones(rows, bool))
        for name in ("last_logits", "position_ids_after"):
            found.skip(f"b{rows}.j00.{name}", _TWICE)

    opened = subject.prefill(subject.prompts(prompts, images), sparsity, room=answers.shape[1])
    assert opened.cache is not None
    cached, _ = feed(subject, opened.cache, answers, sparsity)
    clean = np.concatenate([last_logits(opened)[:, None], cached["logits"]], axis=1)
    found.put("clean_kv_logits", clean[:, steps])
    return found


_append = jax.jit(nocache.append)


def _put_step(found: Computed, name: str, batch: Batch, out: PrefillOutput, fed: int) -> None:
    """All answer tokens but the last were judged; the last is the one that speaks."""
    judged = max(0, fed - 1)
    answer = _answer_index(batch, judged)
    logits, keep = out.selection.text_logits, np.take_along_axis(np.asarray(out.selection.keep), answer, axis=1)
    found.put(f"{name}.last_logits", last_logits(out))
    if logits is not None:
        found.put(f"{name}.text_logits", np.take_along_axis(np.asarray(logits), answer[..., None], axis=1))
    # The official rule keeps the same number in every row, so the rows make a rectangle.
    found.put(f"{name}.kept_answer_index", np.nonzero(keep)[1].reshape(len(keep), -1).astype(np.int32))
    found.put(f"{name}.position_ids_after", positions_after(batch, out))


def _answer_index(batch: Batch, count: int) -> Int[np.ndarray, "B T"]:
    """Where the first `count` answer tokens of each row stand."""
    start = np.asarray(batch.lengths) - np.sum(np.asarray(batch.kind) == Kind.ANSWER, axis=1)
    return start[:, None] + np.arange(count)
