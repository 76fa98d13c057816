"""A cache is given back as soon as nobody needs it: one more beside the others may be more than a device has."""

import functools
import weakref
from collections.abc import Callable
from typing import Any

import pytest

import dynllava_jax as dl
from dynllava_jax.inference.run import Run
from dynllava_jax.testing import tiny_assistant


class Watch:
    """Numbers the runs, each of which has a cache, and sees which are alive: now, and whenever one was begun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._runs: list[weakref.ref[Run]] = []
        self.before: list[list[int]] = []
        for name in ("open", "resume"):
            monkeypatch.setattr(Run, name, staticmethod(functools.partial(self._begin, getattr(Run, name))))

    def _begin(self, make: Callable[..., Run], *args: Any, **options: Any) -> Run:
        self.before.append(self.alive())
        run = make(*args, **options)
        self._runs.append(weakref.ref(run))
        return run

    def alive(self) -> list[int]:
        return [number for number, run in enumerate(self._runs) if run() is not None]


def test_batches_of_many_requests_stand_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    assistant, watch = tiny_assistant(buckets=dl.Buckets(rows=(1,))), Watch(monkeypatch)
    answers = assistant.generate_batch(dl.Request("What is it?", max_new_tokens=2, seed=seed) for seed in range(3))
    assert all(isinstance(answer, dl.Answer) for answer in answers)
    assert watch.before == [[], [], []]


def test_a_turn_that_is_over_holds_its_own_cache_only(monkeypatch: pytest.MonkeyPatch) -> None:
    chat, watch = tiny_assistant().chat(), Watch(monkeypatch)
    for question in ("What is it?", "And now?", "Why?"):
        turn = chat.stream(question, max_new_tokens=2)
        assert "".join(turn)
    assert chat.ask("Where?", max_new_tokens=2)
    assert watch.before == [[], [0], [1], [2]]
    assert turn.over
    assert watch.alive() == [2, 3]
