"""Several turns on one cache."""

import dataclasses
import threading
from types import TracebackType
from typing import Any

import numpy as np
import pytest

from dynllava_jax.data.prompt import continuation_ids
from dynllava_jax.data.spans import Kind
from dynllava_jax.data.templates import get_template
from dynllava_jax.errors import InputError
from dynllava_jax.inference.assistant import Assistant
from dynllava_jax.inference.request import Request
from dynllava_jax.inference.run import Run
from dynllava_jax.testing import synthetic_image, tiny_assistant, tiny_config

FIRST, SECOND, THIRD = "What is in the left?", "And in the right?", "Is the cat red?"


@pytest.fixture(scope="module", params=["plain", pytest.param("instruct", marks=pytest.mark.slow)])
def assistant(request: pytest.FixtureRequest) -> Assistant:
    config = tiny_config()
    if request.param == "instruct":
        sparsity = dataclasses.replace(config.sparsity, instruct_selector="learned")
        config = dataclasses.replace(config, sparsity=sparsity)
    return tiny_assistant(config)


def test_turns_continue_on_the_cache(assistant: Assistant) -> None:
    chat = assistant.chat(synthetic_image(1))
    first = chat.ask(FIRST, max_new_tokens=6)
    assert first.token_ids == assistant.generate(synthetic_image(1), FIRST, max_new_tokens=6).token_ids
    held = first.cache_tokens
    for question in (SECOND, THIRD):
        answer = chat.ask(question, max_new_tokens=5)
        # Fed on top: the last answer token, its end, the question, and all answer tokens but the last.
        template = get_template(assistant.config.text_prep.template)
        asked = 2 + len(continuation_ids(assistant.tokenizer, template, question))
        grown = answer.cache_tokens["shallow"] - held["shallow"]
        assert grown - asked - (len(answer.token_ids) - 1) in (-1, 0)  # -1: the last token was the end itself
        kept = sum(keep or 0 for keep in answer.kept_output_tokens)
        deep = answer.cache_tokens["deep"] - held["deep"]
        dropped = grown - deep - (len(answer.token_ids) - 1 - kept)
        assert dropped >= 0 if assistant.config.sparsity.instruct_selector else dropped == 0
        assert answer.kept_image_tokens == []
        held = answer.cache_tokens


def test_streamed_turns_equal_asked_ones(assistant: Assistant) -> None:
    asked, streamed = assistant.chat(synthetic_image(2)), assistant.chat(synthetic_image(2))
    for question in (FIRST, SECOND):
        whole = asked.ask(question, max_new_tokens=5)
        assert "".join(streamed.stream(question, max_new_tokens=5, every=2)) == whole.text


def test_an_open_turn_must_end_first_and_a_cancelled_one_counts(assistant: Assistant) -> None:
    chat = assistant.chat(synthetic_image(1))
    stream = chat.stream(FIRST, max_new_tokens=8, every=1)
    next(stream)
    with pytest.raises(InputError, match="still open"):
        chat.ask(SECOND)
    stream.cancel()
    assert chat.ask(SECOND, max_new_tokens=3).token_ids


class Announced:
    """A lock that says when somebody comes for it."""

    def __init__(self, lock: threading.RLock):
        self._lock, self.wanted = lock, threading.Event()

    def __enter__(self) -> None:
        self.wanted.set()
        self._lock.acquire()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._lock.release()


def test_a_stream_cancelled_while_it_waits_draws_nothing_more(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next turn has begun by then, from what had been drawn when the last one was cancelled."""
    ends = []
    for waits in (False, True):
        chat = assistant.chat(synthetic_image(1))
        first = chat.stream(FIRST, max_new_tokens=8, every=1)
        next(first)
        reader = threading.Thread(target=list, args=(first,))
        with assistant.lock:
            if waits:
                announced = Announced(assistant.lock)
                monkeypatch.setattr(first, "_lock", announced)
                reader.start()
                announced.wanted.wait()
            first.cancel()
            second = chat.stream(SECOND, max_new_tokens=5)
        if waits:
            reader.join()
        list(second)
        assert first.answer is not None
        assert second.answer is not None
        ends.append([(turn.token_ids, turn.cache_tokens) for turn in (first.answer, second.answer)])
    assert ends[0] == ends[1]


@pytest.mark.parametrize(("turns", "program"), [(0, "_prefill"), (0, "_segment"), (1, "_extend"), (1, "_segment")])
def test_a_turn_that_is_broken_off_never_happened(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch, turns: int, program: str
) -> None:
    """Someone who interrupts a notebook cell asks again: what was drawn meanwhile must not stand in the cache."""
    chat, other = assistant.chat(synthetic_image(1)), assistant.chat(synthetic_image(1))
    for _ in range(turns):
        assert chat.ask(FIRST, max_new_tokens=4).token_ids == other.ask(FIRST, max_new_tokens=4).token_ids
    real = getattr(assistant.engine, program)

    def interrupted(*args: Any, **kwargs: Any) -> None:
        real(*args, **kwargs)
        raise KeyboardInterrupt

    for ask in (chat.ask, lambda *args, **wishes: list(chat.stream(*args, **wishes))):
        with monkeypatch.context() as patch:
            patch.setattr(assistant.engine, program, interrupted)
            with pytest.raises(KeyboardInterrupt):
                ask("Is it a dog?", max_new_tokens=6)
    ours, theirs = (one.ask(SECOND, max_new_tokens=4) for one in (chat, other))
    assert (ours.token_ids, ours.cache_tokens) == (theirs.token_ids, theirs.cache_tokens)


def test_a_refused_turn_leaves_the_conversation_as_it_was(assistant: Assistant) -> None:
    chat, other = assistant.chat(synthetic_image(1)), assistant.chat(synthetic_image(1))
    chat.ask(FIRST, max_new_tokens=4)
    other.ask(FIRST, max_new_tokens=4)
    for question, tokens in (("<image> this one?", 4), (SECOND, 5000), ("word " * 400, 4)):
        with pytest.raises(InputError):
            chat.ask(question, max_new_tokens=tokens)
    assert chat.ask(SECOND, max_new_tokens=4).token_ids == other.ask(SECOND, max_new_tokens=4).token_ids


def test_a_dense_conversation_drops_nothing(assistant: Assistant) -> None:
    chat = assistant.chat(synthetic_image(1), dense=True)
    for question in (FIRST, SECOND):
        answer = chat.ask(question, max_new_tokens=4)
        assert answer.cache_tokens["shallow"] == answer.cache_tokens["deep"]


def test_a_dense_turn_is_the_whole_conversation_read_anew(assistant: Assistant) -> None:
    chat = assistant.chat(synthetic_image(1), dense=True)
    first, second = (chat.ask(question, max_new_tokens=6) for question in (FIRST, SECOND))
    tokenizer, template = assistant.tokenizer, get_template(assistant.config.text_prep.template)
    end = [] if first.token_ids[-1] in assistant.engine.stop_ids else tokenizer.encode(template.end, add_bos=False)
    said = [*first.token_ids, *end, *continuation_ids(tokenizer, template, SECOND)]

    prepared = assistant.prepare(Request(FIRST, [synthetic_image(1)], max_new_tokens=6))
    whole = dataclasses.replace(
        prepared.sample,
        tokens=np.concatenate([prepared.sample.tokens, np.array(said, np.int32)]),
        kind=np.concatenate([prepared.sample.kind, np.full(len(said), Kind.PROMPT, np.int32)]),
    )
    anew = dataclasses.replace(prepared, sample=whole)
    run = Run.open(assistant.engine, [anew], assistant.config.sparsity.dense())
    while not run.finished:
        run.advance()
    assert run.tokens[0] == second.token_ids
    assert run.held[0] == second.cache_tokens
