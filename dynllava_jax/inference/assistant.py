"""The public face: ask a model about pictures."""

import dataclasses
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from jax.sharding import Mesh

from dynllava_jax.config.check import check_type
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.data.templates import get_template
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.errors import InputError, shown
from dynllava_jax.inference.buckets import Buckets, Shape, fit
from dynllava_jax.inference.conversation import Chat
from dynllava_jax.inference.engine import Engine
from dynllava_jax.inference.explain import Explanation, explain
from dynllava_jax.inference.prepare import DEFAULT_ANSWER, Preparer, as_list
from dynllava_jax.inference.request import Answer, Request, check_switch
from dynllava_jax.inference.run import Prepared, Run
from dynllava_jax.inference.sampling import GREEDY, Sampler
from dynllava_jax.inference.stream import Stream, end_at_stop, read
from dynllava_jax.kernels import api
from dynllava_jax.model.dynllava import DynamicLlava

Image = Any
"""A path, URL, bytes, PIL image or uint8 array [H, W, 3]."""


class Assistant:
    """A model, its tokenizer and its compiled programs. Made by `dynllava_jax.load`.

    It raises `InputError` for what a caller gets wrong, and neither prints nor exits. Calls from several threads
    wait for one another.

    Attributes:
        scenes_only: it was trained on the demo's scenes and knows nothing else.
    """

    def __init__(
        self,
        model: DynamicLlava,
        tokenizer: Tokenizer,
        *,
        buckets: Buckets | None = None,
        mesh: Mesh | None = None,
        dtype: str = "float32",
        attention: api.Implementation = None,
        products: str | None = None,
        scenes_only: bool = False,
    ):
        self.tokenizer = tokenizer
        self.scenes_only = scenes_only
        self.engine = Engine(
            model,
            buckets=buckets or Buckets(),
            mesh=mesh,
            dtype=dtype,
            stop_ids=_stop_ids(model.config, tokenizer),
            attention=attention,
            products=products,
        )
        self.prepare = Preparer(model.config, tokenizer, self.engine.buckets)
        self.lock = threading.RLock()

    @property
    def config(self) -> ModelConfig:
        return self.engine.config

    @property
    def programs(self) -> int:
        """N: how many programs any stream of single-turn requests can compile at most, dense ones included."""
        modes = {self._sparsity(dense) for dense in (False, True)}
        return sum(self.engine.buckets.bound(dataclasses.replace(self.config, sparsity=mode)) for mode in modes)

    def generate(
        self,
        images: Image | Sequence[Image] | None,
        question: str,
        *,
        max_new_tokens: int | None = None,
        sampler: Sampler = GREEDY,
        seed: int = 0,
        dense: bool = False,
        use_cache: bool = True,
    ) -> Answer:
        """Answers one question.

        Args:
            images: one picture, several, or None; see `Request.images`.
            question: see `Request.question`.
            max_new_tokens, sampler, seed: see `Request`.
            dense: the decoder drops nothing (the same weights without predictors); what a tower or embed selector
                drops never reaches it.
            use_cache: False runs the whole sequence at every step.

        Raises:
            InputError: anything wrong with the request.
        """
        request = Request(question, as_list(images), max_new_tokens, sampler, seed)
        answer = self.generate_batch([request], dense=dense, use_cache=use_cache)[0]
        if isinstance(answer, InputError):
            raise answer
        return answer

    def explain(
        self,
        images: Image | Sequence[Image] | None,
        question: str,
        *,
        max_new_tokens: int | None = None,
        sampler: Sampler = GREEDY,
        seed: int = 0,
        dense: bool = False,
        use_cache: bool = True,
    ) -> Explanation:
        """As `generate`, with what was decided about every image token and every token of the answer."""
        sparsity = self._sparsity(dense)
        check_switch("use_cache", use_cache)
        prepared = self.prepare(Request(question, as_list(images), max_new_tokens, sampler, seed))
        with self.lock:
            run = self._finish([prepared], sparsity, use_cache)
            return explain(run, self._read(run, 0), prepared.pixels, self.tokenizer, self.config)

    def generate_batch(
        self,
        requests: Iterable[Request],
        *,
        dense: bool = False,
        use_cache: bool = True,
        progress: Callable[[int], None] = lambda count: None,
    ) -> list[Answer | InputError]:
        """Answers many questions together; each gets what it would get alone.

        A request that is wrong fails alone: its place in the result holds the `InputError`. Pictures that are named by
        paths or addresses are read as they are needed.

        Args:
            requests: the questions, any number of them.
            dense, use_cache: as in `generate`.
            progress: is told how many more have been answered or refused.

        Raises:
            InputError: no list of requests, or a wrong switch.
        """
        if isinstance(requests, Request):
            raise InputError("generate_batch takes a list of requests, not a single one; put it into a list.")
        if not isinstance(requests, Iterable):
            raise InputError(f"generate_batch takes a list of requests, not {shown(requests)}.")
        sparsity = self._sparsity(dense)
        check_switch("use_cache", use_cache)
        requests = list(requests)
        results: dict[int, Answer | InputError] = {}
        for batch in self.prepare.batches(requests, self.engine.buckets.rows[-1]):
            ready = [(place, item) for place, item in batch if isinstance(item, Prepared)]
            results |= {place: item for place, item in batch if isinstance(item, InputError)}
            if ready:
                with self.lock:
                    run = self._finish([item for _, item in ready], sparsity, use_cache)
                results |= {place: self._read(run, row) for row, (place, _) in enumerate(ready)}
                del run  # its cache would stand beside that of the next batch
            progress(len(batch))
        return [results[place] for place in range(len(requests))]

    def stream(
        self,
        images: Image | Sequence[Image] | None,
        question: str,
        *,
        max_new_tokens: int | None = None,
        sampler: Sampler = GREEDY,
        seed: int = 0,
        dense: bool = False,
        use_cache: bool = True,
        every: int = 4,
    ) -> Stream:
        """As `generate`, but an iterator over pieces of text; `every` is how many tokens lie between two looks."""
        sparsity = self._sparsity(dense)
        check_switch("use_cache", use_cache)
        prepared = self.prepare(Request(question, as_list(images), max_new_tokens, sampler, seed))

        def open_run() -> Run:
            return Run.open(self.engine, [prepared], sparsity, use_cache=use_cache)

        return Stream(open_run, self.tokenizer, self._template, self.lock, every)

    def chat(self, images: Image | Sequence[Image] | None = None, *, dense: bool = False) -> Chat:
        """A conversation about these pictures; the cache stays between the turns."""
        return Chat(self.engine, self.prepare, self.lock, as_list(images), self._sparsity(dense))

    def warmup(
        self,
        shapes: Iterable[Shape] | None = None,
        *,
        dense: bool = False,
        on_shape: Callable[[Shape], None] = lambda shape: None,
    ) -> list[Shape]:
        """Compiles programs before they are needed.

        Args:
            shapes: what to compile for; None: single requests with at most one image and an answer of default length.
            dense: the programs whose decoder drops nothing.
            on_shape: is told each shape when its programs are there.

        Returns:
            The shapes that are ready.

        Raises:
            InputError: `shapes` is no list, or holds something else.
        """
        sparsity = self._sparsity(dense)
        check_type(shapes, Iterable | None, "warmup's shapes")
        if shapes is None:
            buckets = self.engine.buckets
            answer = fit("answer tokens", min(DEFAULT_ANSWER, buckets.answer[-1]), buckets.answer)
            every = buckets.shapes(dataclasses.replace(self.config, sparsity=sparsity))
            fewest = {0, min(filter(None, buckets.images), default=0)}  # that hold no image, and one
            shapes = (s for s in every if s.rows == buckets.rows[0] and s.images in fewest and s.answer == answer)
        shapes = list(shapes)
        for shape in shapes:
            check_type(shape, Shape, "Each of warmup's shapes")
        ready = []
        for shape in shapes:
            with self.lock:
                self.engine.compile(shape, sparsity)
            ready.append(shape)
            on_shape(shape)
        return ready

    @property
    def _template(self):
        return get_template(self.config.text_prep.template)

    def _sparsity(self, dense: bool) -> SparsityConfig:
        check_switch("dense", dense)
        return self.config.sparsity.dense() if dense else self.config.sparsity

    def _finish(self, prepared: Sequence[Prepared], sparsity: SparsityConfig, use_cache: bool) -> Run:
        run = Run.open(self.engine, prepared, sparsity, use_cache=use_cache)
        end_at_stop(run, self.tokenizer, self._template)
        while not run.finished:
            run.advance()
            end_at_stop(run, self.tokenizer, self._template)
        return run

    def _read(self, run: Run, row: int) -> Answer:
        return read(run, row, self.tokenizer, self._template)


def _stop_ids(config: ModelConfig, tokenizer: Tokenizer) -> tuple[int, ...]:
    ids = {config.text_prep.eos_id}
    stop = get_template(config.text_prep.template).stop
    if stop:
        spelled = tokenizer.encode(stop, add_bos=False)
        if len(spelled) == 1:
            ids.add(spelled[0])
    return tuple(sorted(ids))
