"""What an answer costs: FLOPs counted, cache bytes of real answers, and times as ratios to a dense model in one run."""

import statistics
from collections.abc import Sequence
from typing import Any

import jax

from dynllava_jax.analysis import prompt_flops as counts
from dynllava_jax.analysis.flops import Tokens
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.evaluation.tasks import Question
from dynllava_jax.inference.assistant import Assistant
from dynllava_jax.inference.request import Answer, Request

_TOKENS = 64


def efficiency(assistant: Assistant, dense: Assistant, questions: Sequence[Question]) -> dict[str, Any]:
    """One setting's costs beside those of a model that drops nothing.

    Args:
        assistant: the setting's.
        dense: what it is compared with.
        questions: asked of both by turns, once to compile and once to count.

    Returns:
        flops: convention -> image_tokens and prompt -> [this one's, dense]; multiply-adds under `fastv`.
        cache_bytes: stack -> [kept, if nothing were dropped].
        seconds: prefill and a token -> ratio to the dense model's, medians; `device` says on what.
    """
    config, whole = assistant.config, dense.config
    requests = [Request(question.text, [question.picture], _TOKENS) for question in questions]
    lengths = [assistant.prepare(request).sample.length for request in requests]
    text = statistics.mean(lengths) - config.image_tokens
    ours, theirs = [], []
    for turn in range(2):
        for request in requests:
            pair = _ask(assistant, request), _ask(dense, request)
            if turn:
                ours.append(pair[0])
                theirs.append(pair[1])
    return {
        "flops": _flops(config, whole, text),
        "cache_bytes": _cache(ours, config, whole, assistant.engine.dtype),
        "seconds": {
            "prefill": _ratio([answer.seconds["prefill"] for answer in ours], theirs, "prefill"),
            "token": _ratio([_per_token(answer) for answer in ours], theirs, "token"),
            "device": jax.devices()[0].device_kind,
        },
    }


def _ask(of: Assistant, request: Request) -> Answer:
    (answer,) = of.generate_batch([request])
    assert isinstance(answer, Answer)
    return answer


def _flops(config: ModelConfig, dense: ModelConfig, text: Tokens) -> dict[str, dict[str, list[float]]]:
    seen, all_of_them = counts.selection(config), counts.selection(dense).dense()
    return {
        name: {
            part: [
                counts.prefill(config.decoder, seen, tokens, name),
                counts.prefill(config.decoder, all_of_them, tokens, name),
            ]
            for part, tokens in (("image_tokens", 0), ("prompt", text))
        }
        for name in counts.CONVENTIONS
    }


def _cache(answers: Sequence[Answer], config: ModelConfig, dense: ModelConfig, dtype: str) -> dict[str, list[float]]:
    decoder, shallow = config.decoder, config.sparsity.sparse_layer
    one = 2 * jax.numpy.dtype(dtype).itemsize * decoder.num_kv_heads * decoder.head_dim
    layers = {"shallow": shallow, "deep": decoder.num_layers - shallow}
    # What selectors before the decoder took out counts as dropped too.
    gone = dense.image_tokens - config.image_tokens
    seen = statistics.mean(answer.cache_tokens["shallow"] for answer in answers) + gone
    return {
        stack: [
            float(one * count * statistics.mean(answer.cache_tokens[stack] for answer in answers)),
            float(one * count * seen),
        ]
        for stack, count in layers.items()
    }


def _per_token(answer: Answer) -> float:
    return answer.seconds["decode"] / max(1, len(answer.token_ids) - 1)


def _ratio(ours: Sequence[float], theirs: Sequence[Answer], what: str) -> float:
    other = [_per_token(answer) if what == "token" else answer.seconds[what] for answer in theirs]
    return statistics.median(ours) / max(statistics.median(other), 1e-9)
