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

    What the deep stack dropped in an earlier turn does not come back; the shallow stack remembers everything. A turn
    that was cancelled counts as far as it went; one that an error or a KeyboardInterrupt broke off never happened.
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
        self._run: Run | None = None
        self._stream: Stream | None = None

    def ask(
        self, question: str, *, max_new_tokens: int | None = None, sampler: Sampler = GREEDY, seed: int = 0
    ) -> Answer:
        """The next turn, whole.

        Raises:
            InputError: anything wrong with the question, or a conversation that has outgrown the context. The
                conversation is then what it was before, as it is after an interrupt.
        """
        every = self._engine.buckets.segment
        with self._lock:
            stream = self.stream(question, max_new_tokens=max_new_tokens, sampler=sampler, seed=seed, every=every)
            try:
                for _ in stream:
                    pass
                answer = stream.answer
            except BaseException:
                self._stream = None
                raise
            self._settle()
        assert answer is not None
        return answer

    def stream(
        self,
        question: str,
        *,
        max_new_tokens: int | None = None,
        sampler: Sampler = GREEDY,
        seed: int = 0,
        every: int = 4,
    ) -> Stream:
        """The next turn, piece by piece; finish or cancel it before the one after.

        Raises:
            InputError: as `ask`, or the stream of the previous turn is still open.
        """
        with self._lock:
            self._settle()
            before = self._run
            request = Request(question, self._images if before is None else (), max_new_tokens, sampler, seed)
            instruction = [] if before is None else self._instruction(question, before)
            prepared = self._prepare(request) if before is None else self._further(request, len(instruction), before)

            def open_run() -> Run:
                if before is None:
                    return Run.open(self._engine, [prepared], self._sparsity)
                assert before.cache is not None
                return Run.resume(self._engine, before.cache, instruction, prepared, self._sparsity)

            self._stream = Stream(open_run, self._prepare.tokenizer, self._template, self._lock, every)
            return self._stream

    def _settle(self) -> None:
        """Makes the newest turn part of the conversation, if it got anywhere."""
        if self._stream is None:
            return
        if not self._stream.over:
            raise InputError("The previous turn is still open; read its stream to the end or cancel it first.")
        if self._stream.run is not None and not self._stream.broken:
            self._run = self._stream.run
        self._stream = None

    def _instruction(self, question: str, run: Run) -> list[int]:
        """What the new turn feeds: the answer's last token, which was never fed, its end, and the question."""
        if IMAGE_MARK in question:
            raise InputError("Pictures belong to the first turn; start a new chat to show another one.")
        tokenizer, answer = self._prepare.tokenizer, run.tokens[0]
        unfed = answer[len(run.fed[0]) :]
        end = self._template.end.strip() or self._template.end
        ended = answer[-1] in self._engine.stop_ids or end in tokenizer.decode(answer, skip_special=False)
        closing = [] if ended else tokenizer.encode(self._template.end, add_bos=False)
        return [*unfed, *closing, *self._prepare.known(continuation_ids(tokenizer, self._template, question))]

    def _further(self, request: Request, length: int, run: Run) -> Prepared:
        used = run.held[0]["shallow"] + length
        self._engine.buckets.instruction_for(length)
        budget = self._prepare.budget(used, request.max_new_tokens)
        nothing = expand([0], None, image_tokens=1, round_ids=())
        return Prepared(nothing, (), budget, request.sampler, request.seed)
