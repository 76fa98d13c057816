"""Case 13: token ids and images become the decoder's input; spans, labels, masks, positions.

B batch, S sequence.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dynllava_jax.data.batch import Batch
from dynllava_jax.data.spans import Kind, Sample
from dynllava_jax.inference.prefill import see
from dynllava_jax.model.dynllava import DynamicLlava
from dynllava_jax.verify.cases import Case
from dynllava_jax.verify.computed import Computed, spans_of
from dynllava_jax.verify.subject import Subject

_ABSENT = "the official function returns None here; our batch always has it"
_NO_IMAGE = "the official code then sparsifies nothing in the whole batch (docs/differences.md), ours in the others"


def prepare_inputs(subject: Subject, case: Case) -> Computed:
    """13_prepare_inputs: `data.spans.expand`, `data.batch.make_batch` and `model.embed` in every situation."""
    found = Computed()
    for situation, facts in case.info.items():
        if isinstance(facts, dict) and "input_embeds_indices" in facts:
            _run(found, subject, case, situation, facts)
    found.skip("one_without_image.train_loss", _NO_IMAGE)
    return found


def _run(found: Computed, subject: Subject, case: Case, situation: str, facts: dict[str, Any]) -> None:
    samples = _samples(subject, case, situation, facts["tokenizer_model_max_length"])
    images = case.images()[: len(samples)]
    pictures = [[image] if sample.image_count else [] for image, sample in zip(images, samples, strict=True)]
    batch = subject.batch(samples, pictures)
    length = batch.tokens.shape[1]
    # Our padding is always on the right; the official order is restored by moving each row.
    left = facts["tokenizer_padding_side"] == "left"
    shifts = [length - sample.length if left else 0 for sample in samples]
    padding = np.asarray(batch.kind) == Kind.PAD
    index_map = np.full(batch.tokens.shape, -1, np.int32)
    for row, sample in enumerate(samples):
        index_map[row, : sample.length] = sample.image_index_map
    values: dict[str, Any] = {
        "out_attention_mask": ~padding,
        "out_position_ids": batch.positions,
        "image_index_map": index_map,
        "embeds_checksum": jax.jit(_checksum)(subject.model, batch, subject.keys(len(samples))),
    }
    if batch.labels is not None:
        values["out_labels"] = batch.labels
    for name, value in values.items():
        full = f"{situation}.{name}"
        if full in case.outputs and not case.outputs[full].size:
            continue
        # The official padding is zero vectors; ours is the padding token, which nobody reads.
        masked = _shift(padding, shifts) if name == "embeds_checksum" else None
        found.put(full, _shift(np.asarray(value), shifts), masked)
    for name, reference in case.outputs.items():
        if name.startswith(f"{situation}.") and reference.shape == (0,):
            found.skip(name, _ABSENT)
    with_image = [shift for shift, sample in zip(shifts, samples, strict=True) if sample.image_count]
    found.info[f"info.{situation}.input_embeds_indices"] = [
        {part: [edge + shift for edge in span] for part, span in spans.items()}
        for shift, spans in zip(with_image, spans_of(samples), strict=True)
    ]


def _samples(subject: Subject, case: Case, situation: str, max_length: int) -> list[Sample]:
    ids = case.inputs[f"{situation}.input_ids"]
    real = case.inputs.get(f"{situation}.attention_mask", np.ones(ids.shape, bool))
    labels = case.inputs.get(f"{situation}.labels")
    return [
        subject.sample(ids[row][real[row]], None if labels is None else labels[row][real[row]], max_length)
        for row in range(len(ids))
    ]


def _checksum(model: DynamicLlava, batch: Batch, keys: Array) -> Float[Array, "B S"]:
    """Sum over features of what enters the decoder, by the two calls that prefill starts with."""
    images = see(model, batch, keys, "float32")
    features = None if images is None else images.features
    return jnp.sum(model.embed(batch.tokens, batch.kind == Kind.IMAGE, features, jnp.dtype("float32")), axis=-1)


def _shift(values: np.ndarray, shifts: list[int]) -> np.ndarray:
    return np.stack([np.roll(row, shift) for row, shift in zip(values, shifts, strict=True)])
