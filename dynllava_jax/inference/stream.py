"""Reading an answer off a run: whole, or piece by piece."""

import threading
from collections.abc import Callable, Iterator, Sequence

from dynllava_jax.data.templates import Template
from dynllava_jax.data.tokenizer import StreamDecoder, Tokenizer
from dynllava_jax.inference.request import Answer, check_count
from dynllava_jax.inference.run import Run


class Stream(Iterator[str]):
    """Pieces of an answer as they appear; joined they are the answer's text.

    Attributes:
        answer: the whole answer so far; complete when the iteration has ended.
    """

    def __init__(
        self,
        open_run: Callable[[], Run],
        tokenizer: Tokenizer,
        template: Template,
        lock: threading.RLock,
        every: int,
    ):
        check_count("every", every)
        self._open: Callable[[], Run] | None = open_run
        self._tokenizer, self._template, self._lock, self._every = tokenizer, template, lock, every
        self._run: Run | None = None
        self._given = 0
        self._over = False
        self._broken = False

    @property
    def answer(self) -> Answer | None:
        """None before the first piece."""
        return None if self._run is None else read(self._run, 0, self._tokenizer, self._template)

    @property
    def run(self) -> Run | None:
        """The batch of one behind this stream."""
        return self._run

    def cancel(self) -> None:
        """Ends the stream, also from another thread; the answer so far stays readable."""
        self._over = True

    @property
    def over(self) -> bool:
        """Whether the answer is complete or cancelled."""
        return self._over

    @property
    def broken(self) -> bool:
        """Whether an exception broke it off: what was being drawn is lost, and the run behind it is of no use."""
        return self._broken

    def __next__(self) -> str:
        while not self._over:
            try:
                with self._lock:
                    if self._over:  # cancelled while it waited: a further turn may have begun by now
                        break
                    if self._run is None:
                        assert self._open is not None
                        self._run = self._open()
                        self._open = None  # it holds the cache of the turn before
                    elif not self._run.finished:
                        self._run.advance(self._every)
                    end_at_stop(self._run, self._tokenizer, self._template)
            except BaseException:
                self._over = self._broken = True
                raise
            self._over = self._over or self._run.finished
            text = _certain(self._run.tokens[0], self._tokenizer, self._template, final=self._over)
            piece, self._given = text[self._given :], max(self._given, len(text))
            if piece:
                return piece
        raise StopIteration


def read(run: Run, row: int, tokenizer: Tokenizer, template: Template) -> Answer:
    """One row of a run as an answer."""
    tokens, fed = run.tokens[row], run.fed[row]
    return Answer(
        text=_certain(tokens, tokenizer, template, final=True),
        token_ids=list(tokens),
        kept_image_tokens=run.kept[row],
        kept_output_tokens=[*fed, *(None,) * (len(tokens) - len(fed))],
        cache_tokens=dict(run.held[row]),
        seconds=dict(run.seconds),
    )


def end_at_stop(run: Run, tokenizer: Tokenizer, template: Template) -> None:
    """Ends the answers that hold the template's stop string, with the token that completed it.

    A stop string of several tokens is seen only when the host looks; what was drawn after it is taken back, so that
    an answer does not depend on how often that is.
    """
    ends = {row: _stop_count(ids, tokenizer, template) for row, ids in enumerate(run.tokens)}
    run.cut({row: count for row, count in ends.items() if count is not None})


def _stop_count(tokens: Sequence[int], tokenizer: Tokenizer, template: Template) -> int | None:
    """How many tokens it takes to complete the stop string."""
    if template.stop is None or template.stop not in tokenizer.decode(tokens, skip_special=False):
        return None
    counts = range(1, len(tokens) + 1)
    return next(n for n in counts if template.stop in tokenizer.decode(tokens[:n], skip_special=False))


def _certain(tokens: Sequence[int], tokenizer: Tokenizer, template: Template, *, final: bool) -> str:
    """The text that later tokens cannot change: without the stop string, nor what may be the start of one."""
    decoder = StreamDecoder(tokenizer)
    text = decoder.push(tokens) + (decoder.finish() if final else "")
    stop = template.stop
    if stop is None:
        return text
    head, found, _ = text.partition(stop)
    if found or final:
        return head
    held = max((size for size in range(1, len(stop)) if text.endswith(stop[:size])), default=0)
    return text[: len(text) - held]
