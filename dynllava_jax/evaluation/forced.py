"""Teacher-forced answers: how likely a model finds the true text while it drops tokens as it would when generating.

B texts, S sequence.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from dynllava_jax.data.batch import Batch, make_batch
from dynllava_jax.data.image import preprocess
from dynllava_jax.data.preparation import Preparation
from dynllava_jax.data.prompt import IMAGE_MARK
from dynllava_jax.data.records import Record
from dynllava_jax.data.templates import Turn, get_template
from dynllava_jax.evaluation.tasks import Question
from dynllava_jax.inference.assistant import Assistant
from dynllava_jax.nn.jax_settings import random_key
from dynllava_jax.sparsify.eviction import Eviction
from dynllava_jax.training.cross_entropy import cross_entropy, supervised
from dynllava_jax.training.decisions import InferenceRule
from dynllava_jax.training.forward import ForwardPlan, forward

_ROWS, _TILE, _CHUNK = 4, 64, 128


def forced(
    assistant: Assistant,
    questions: Sequence[Question],
    eviction: Eviction | None = None,
) -> list[dict[str, float]]:
    """For each question the summed loss of its true answer, its tokens, and the share that the deep layers kept.

    Args:
        assistant: its selectors decide; what they drop no later token sees.
        questions: with the true answers.
        eviction: a cache policy for the answer, in place of the output selector.
    """
    model, config = assistant.engine.model, assistant.config
    prepare = Preparation(
        assistant.tokenizer,
        get_template(config.text_prep.template),
        config.image_tokens,
        config.image_prep,
        config.decoder.context,
        False,
    )
    samples = [prepare.sample(_record(question))[0] for question in questions]
    length = -(-max(sample.length for sample in samples) // _TILE) * _TILE
    graph, params = nnx.split(model)
    plan = ForwardPlan(remat="none", dtype=assistant.engine.dtype, eviction=eviction)
    look = jax.jit(functools.partial(_look, graph, plan=plan))
    rows = []
    for first in range(0, len(samples), _ROWS):
        chunk = samples[first : first + _ROWS]
        pixels = [[preprocess(question.picture, config.image_prep)] for question in questions[first : first + _ROWS]]
        batch = make_batch(chunk, pixels, length=length, slots=1, rows=_ROWS)
        keys = jax.random.split(random_key(first), _ROWS)
        found = jax.device_get(look(params, assistant.engine.place(batch), assistant.engine.place(keys)))
        rows += [{name: float(values[row]) for name, values in found.items()} for row in range(len(chunk))]
    return rows


def _look(graph: Any, params: Any, batch: Batch, keys: jax.Array, plan: ForwardPlan) -> dict[str, jax.Array]:
    model = nnx.merge(graph, params)
    out = forward(model, batch, keys, InferenceRule(), plan)
    labels = batch.need_labels()
    kept = out.held
    if kept is None:
        verdict = out.decisions.output
        kept = jnp.ones(labels.shape[0], jnp.float32)
        if verdict is not None:
            judged = verdict.judged.astype("float32")
            kept = (verdict.keep * judged).sum(-1) / judged.sum(-1).clip(1)
    return {
        "loss": cross_entropy(model.decoder, out.hidden, labels, _CHUNK),
        "tokens": supervised(labels),
        "kept": kept,
    }


def _record(question: Question) -> Record:
    return Record(question.id, ("",), (Turn(f"{IMAGE_MARK}\n{question.text}", question.answer),))
