"""Stop strings of several tokens: an answer ends where they end, however often the host looks."""

import dataclasses

import numpy as np
import pytest

from dynllava_jax.data import templates
from dynllava_jax.errors import InputError
from dynllava_jax.inference import stream as streams
from dynllava_jax.inference.assistant import Assistant
from dynllava_jax.inference.buckets import Buckets
from dynllava_jax.inference.request import Answer, Request
from dynllava_jax.inference.sampling import Temperature
from dynllava_jax.testing import synthetic_image, tiny_assistant

PICTURE, QUESTION = synthetic_image(1), "What is in the picture?"
WISHES = {"max_new_tokens": 14, "sampler": Temperature(1.5), "seed": 3}
BUCKETS = Buckets(rows=(4,), images=(1,), length=(160,), answer=(16,), instruction=(32,), segment=16)


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return tiny_assistant(buckets=BUCKETS)


@pytest.fixture(scope="module")
def whole(assistant: Assistant) -> Answer:
    """The answer without any stop string."""
    return assistant.generate(PICTURE, QUESTION, **WISHES)


@pytest.fixture
def stop(assistant: Assistant, whole: Answer, monkeypatch: pytest.MonkeyPatch) -> str:
    """A stop string that the answer completes with its ninth token, having begun it with the eighth."""
    before, after = (assistant.tokenizer.decode(whole.token_ids[:count]) for count in (7, 9))
    text = after[len(before) :]
    assert len(text) > 1
    assert text not in after[:-1]
    template = dataclasses.replace(templates.get_template("vicuna_v1"), stop=text)
    monkeypatch.setitem(templates._TEMPLATES, "vicuna_v1", template)
    return text


@pytest.mark.parametrize("every", [1, 3, 4, 16])
def test_an_answer_ends_with_its_stop_string(assistant: Assistant, whole: Answer, stop: str, every: int) -> None:
    stream = assistant.stream(PICTURE, QUESTION, every=every, **WISHES)
    pieces = list(stream)
    answer = stream.answer
    assert answer is not None
    assert stop not in "".join(pieces)
    assert "".join(pieces) == answer.text == assistant.tokenizer.decode(whole.token_ids[:7])
    assert answer.token_ids == whole.token_ids[:9]
    assert answer.kept_output_tokens == [*whole.kept_output_tokens[:8], None]


@pytest.mark.parametrize("use_cache", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_generate_says_the_same(assistant: Assistant, stop: str, use_cache: bool) -> None:
    """Its neighbour goes on; the cache holds what was fed up to the stop string and nothing behind it."""
    long = Request("Is the cat red?", [PICTURE], max_new_tokens=14)
    requests = [Request(QUESTION, [PICTURE], **WISHES), long]
    stopped, other = assistant.generate_batch(requests, use_cache=use_cache)
    assert isinstance(stopped, Answer)
    assert isinstance(other, Answer)
    stream = assistant.stream(PICTURE, QUESTION, every=2, use_cache=use_cache, **WISHES)
    text = "".join(stream)
    alone = stream.answer
    assert alone is not None
    for name in ("text", "token_ids", "kept_output_tokens", "kept_image_tokens", "cache_tokens"):
        assert getattr(stopped, name) == getattr(alone, name)
    assert text == stopped.text
    assert other.token_ids == assistant.generate(PICTURE, long.question, max_new_tokens=14).token_ids
    if use_cache:
        prompt = assistant.prepare(requests[0]).sample.length
        assert stopped.cache_tokens["shallow"] == prompt + len(stopped.token_ids) - 1
        dropped = assistant.config.image_tokens - assistant.config.kept_image_tokens
        kept = sum(keep or 0 for keep in stopped.kept_output_tokens)
        assert stopped.cache_tokens["deep"] == prompt - dropped + kept


def test_the_next_turn_does_not_see_what_was_taken_back(assistant: Assistant, stop: str) -> None:
    """Looked at after every token nothing is ever drawn in vain; a long look must leave the same cache."""
    answers = []
    for every in (1, 16):
        chat = assistant.chat(PICTURE)
        list(chat.stream(QUESTION, every=every, **WISHES))
        answers.append(chat.ask("And why?", max_new_tokens=6))
    assert answers[0].token_ids == answers[1].token_ids
    assert answers[0].cache_tokens == answers[1].cache_tokens


def test_a_cancelled_stream_keeps_what_it_gave(assistant: Assistant, whole: Answer) -> None:
    stream = assistant.stream(PICTURE, QUESTION, every=2, **WISHES)
    assert stream.answer is None
    first = next(stream)
    stream.cancel()
    assert list(stream) == []
    assert stream.over
    assert stream.answer is not None
    assert first in stream.answer.text
    assert stream.answer.token_ids == whole.token_ids[: len(stream.answer.token_ids)]
    assert len(stream.answer.token_ids) < len(whole.token_ids)


def test_a_bad_request_fails_before_the_first_piece(assistant: Assistant) -> None:
    with pytest.raises(InputError, match="has 2 <image> but 1 images were given"):
        assistant.stream(PICTURE, "<image> and <image>")


def test_text_that_may_become_a_stop_string_is_held_back(assistant: Assistant) -> None:
    template = dataclasses.replace(templates.get_template("vicuna_v1"), stop="###")
    tokens = assistant.tokenizer.encode("a ##b ##", add_bos=False)

    def certain(count: int, final: bool) -> str:
        return streams._certain(tokens[:count], assistant.tokenizer, template, final=final)

    pieces = [certain(count, False) for count in range(1, len(tokens) + 1)]
    assert all(np.diff([len(piece) for piece in pieces]) >= 0)
    assert pieces[-1] == "a ##b "
    assert certain(len(tokens), True) == "a ##b ##"
