"""Reading an answer off a run: whole, or piece by piece."""

import threading
from collections.abc import Callable, Iterator, Sequence

from dynllava_jax.data.templates import Template
from dynllava_jax.data.tokenizer import StreamDecoder, Tokenizer
from dynllava_jax.inference.request import Answer
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
        self._open, self._tokenizer, self._template, self._lock, self._every = (
            open_run,
            tokenizer,
            template,
            lock,
            every,
        )
        self._run: Run | None = None
        self._given = 0
        self._over = False

    @property
    def answer(self) -> Answer | None:
        """None before the first piece."""
        return None if self._run is None else read(self._run, 0, self._tokenizer, self._template)

    @property
    def run(self) -> Run | None:
        """The batch of one behind this stream."""
        return self._run

    def cancel(self) -> None:
        """Ends the stream; the answer so far stays readable."""
        self._over = True

    def __next__(self) -> str:
        while not self._over:
            with self._lock:
                if self._run is None:
                    self._run = self._open()
                elif not self._run.finished:
                    self._run.advance(self._every)
                self._over = self._run.finished or stop_text(self._run.tokens[0], self._tokenizer, self._template)
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
        cache_tokens=run.cache_tokens()[row],
        seconds=dict(run.seconds),
    )


def stop_text(tokens: Sequence[int], tokenizer: Tokenizer, template: Template) -> bool:
    """Whether the answer holds the template's stop string (one that is no single token)."""
    return template.stop is not None and template.stop in tokenizer.decode(tokens, skip_special=False)


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
