"""A conversation of several turns on one cache (paper section 3.3.2, stage 3 carried on)."""

import threading
from collections.abc import Sequence
from typing import Any

from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.data.prompt import IMAGE_MARK, continuation_ids
from dynllava_jax.data.spans import expand
from dynllava_jax.data.templates import get_template
from dynllava_jax.errors import InputError
from dynllava_jax.inference.engine import Engine
from dynllava_jax.inference.prepare import Preparer
from dynllava_jax.inference.request import Answer, Request
from dynllava_jax.inference.run import Prepared, Run
from dynllava_jax.inference.sampling import GREEDY, Sampler
from dynllava_jax.inference.stream import Stream


class Chat:
    """Turns about the same pictures. Made by `Assistant.chat`.

    What the deep stack dropped in an earlier turn does not come back; the shallow stack remembers everything.
    """

    def __init__(
        self,
        engine: Engine,
        prepare: Preparer,
        lock: threading.RLock,
        images: Sequence[Any],
        sparsity: SparsityConfig,
    ):
        self._engine, self._prepare, self._lock = engine, prepare, lock
        self._images, self._sparsity = images, sparsity
        self._template = get_template(engine.config.text_prep.template)
        self._last: Stream | None = None

    def ask(
        self, question: str, *, max_new_tokens: int | None = None, sampler: Sampler = GREEDY, seed: int = 0
    ) -> Answer:
        """The next turn, whole.

        Raises:
            InputError: anything wrong with the question, or a conversation that has outgrown the context.
        """
        stream = self.stream(
            question, max_new_tokens=max_new_tokens, sampler=sampler, seed=seed, every=self._engine.buckets.segment
        )
        for _ in stream:
            pass
        assert stream.answer is not None
        return stream.answer

    def stream(
        self,
        question: str,
        *,
        max_new_tokens: int | None = None,
        sampler: Sampler = GREEDY,
        seed: int = 0,
        every: int = 4,
    ) -> Stream:
        """The next turn, piece by piece; finish or cancel it before the one after."""
        if self._last is not None and self._last.run is None:
            raise InputError("The previous turn's stream was never read; read or finish it before the next question.")
        request = Request(question, self._images if self._last is None else (), max_new_tokens, sampler, seed)
        if self._last is None:
            prepared = self._prepare(request)

            def open_run() -> Run:
                return Run.open(self._engine, [prepared], self._sparsity)

        else:
            run = self._last.run
            assert run is not None
            assert run.cache is not None
            instruction = self._instruction(question, run)
            prepared = self._further(request, len(instruction), run)
            cache = run.cache

            def open_run() -> Run:
                return Run.resume(self._engine, cache, instruction, prepared, self._sparsity)

        self._last = Stream(open_run, self._prepare.tokenizer, self._template, self._lock, every)
        return self._last

    def _instruction(self, question: str, run: Run) -> list[int]:
        """What the new turn feeds: the answer's last token, which was never fed, its end, and the question."""
        if IMAGE_MARK in question:
            raise InputError("Pictures belong to the first turn; start a new chat to show another one.")
        tokenizer = self._prepare.tokenizer
        unfed = run.tokens[0][len(run.fed[0]) :]
        end = tokenizer.encode(self._template.end, add_bos=False)
        closing = [] if unfed and [*end][-1:] == unfed[-1:] else end
        return [*unfed, *closing, *continuation_ids(tokenizer, self._template, question)]

    def _further(self, request: Request, length: int, run: Run) -> Prepared:
        used = run.cache_tokens()[0]["shallow"] + length
        self._engine.buckets.instruction_for(length)
        budget = self._prepare.budget(used, request.max_new_tokens)
        nothing = expand([0], None, image_tokens=1, round_ids=())
        return Prepared(nothing, (), budget, request.sampler, request.seed)
