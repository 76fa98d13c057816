"""One batch of prepared requests on its way through the engine, seen from the host."""

import dataclasses
import time
from collections.abc import Sequence

import jax
import numpy as np

from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.data.batch import make_batch
from dynllava_jax.data.spans import Sample
from dynllava_jax.inference.buckets import Shape
from dynllava_jax.inference.cache import Cache
from dynllava_jax.inference.decode import NEVER_FED, DecodeState
from dynllava_jax.inference.engine import Asked, Engine, Opened
from dynllava_jax.inference.nocache import NoCacheState
from dynllava_jax.inference.sampling import Sampler, as_numbers


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A request as the engine wants it.

    Attributes:
        sample: tokens and kinds, one slot per image token.
        pixels: preprocessed images, float32 [H, W, 3] each.
        budget: answer tokens at most.
        sampler, seed: as in `Request`.
    """

    sample: Sample
    pixels: Sequence[np.ndarray]
    budget: int
    sampler: Sampler
    seed: int


@dataclasses.dataclass
class Run:
    """A batch between two segments; `advance` until `finished`.

    Attributes:
        tokens: answer tokens of each row so far.
        fed: keep decision of each token that was fed back, row by row.
        kept: for each row and image the patches kept.
        seconds: wall time so far of `prefill` and `decode`.
    """

    engine: Engine
    shape: Shape
    sparsity: SparsityConfig
    state: DecodeState | NoCacheState
    tokens: list[list[int]]
    fed: list[list[int]]
    kept: list[list[list[int]]]
    seconds: dict[str, float]

    @staticmethod
    def open(
        engine: Engine, prepared: Sequence[Prepared], sparsity: SparsityConfig, *, use_cache: bool = True
    ) -> "Run":
        """Pads, places and prefills the batch."""
        config = dataclasses.replace(engine.config, sparsity=sparsity)
        budget = max(item.budget for item in prepared)
        room = 0 if use_cache else budget
        shape = engine.buckets.shape(
            config,
            [item.sample.length + room for item in prepared],
            [len(item.pixels) for item in prepared],
            budget,
        )
        shape = dataclasses.replace(shape, rows=engine.whole_rows(shape.rows))
        batch = make_batch(
            [item.sample for item in prepared],
            [item.pixels for item in prepared],
            length=shape.length,
            slots=shape.images,
            rows=shape.rows,
        )
        began = time.perf_counter()
        opening = engine.open if use_cache else engine.open_without_cache
        state, opened = opening(batch, asked_of(prepared, shape.rows), shape, sparsity)
        run = Run(engine, shape, sparsity, state, [], [[] for _ in prepared], [], {})
        run._take_first(len(prepared), opened, [len(item.pixels) for item in prepared])
        run.seconds = {"prefill": time.perf_counter() - began, "decode": 0.0}
        return run

    @staticmethod
    def resume(
        engine: Engine, cache: Cache, instruction: Sequence[int], prepared: Prepared, sparsity: SparsityConfig
    ) -> "Run":
        """A further turn of one conversation: feeds the instruction to its cache."""
        buckets = engine.buckets
        held = [int(length[0]) for length in jax.device_get((cache.shallow.length, cache.deep.length))]
        width = buckets.instruction_for(len(instruction))
        rows = cache.shallow.length.shape[0]
        shape = buckets.turn(rows, held[0] + len(instruction), held[1] + len(instruction), prepared.budget)
        tokens = np.zeros((rows, width), np.int32)
        tokens[0, : len(instruction)] = instruction
        lengths = np.zeros(rows, np.int32)
        lengths[0] = len(instruction)
        began = time.perf_counter()
        state = engine.resume(cache, tokens, lengths, asked_of([prepared], rows), shape, sparsity)
        run = Run(engine, shape, sparsity, state, [], [[]], [], {})
        run._take_first(1, None, [0])
        run.seconds = {"prefill": time.perf_counter() - began, "decode": 0.0}
        return run

    @property
    def finished(self) -> bool:
        return bool(np.all(jax.device_get(self.state.done)))

    @property
    def cache(self) -> Cache | None:
        return self.state.cache if isinstance(self.state, DecodeState) else None

    def advance(self, steps: int | None = None) -> list[list[int]]:
        """Runs one segment; returns each row's new tokens."""
        began = time.perf_counter()
        if isinstance(self.state, DecodeState):
            self.state, out = self.engine.advance(self.state, self.shape, self.sparsity, steps)
        else:
            self.state, out = self.engine.advance_without_cache(self.state, self.shape, self.sparsity, steps)
        tokens, keep, count = jax.device_get((out.tokens, out.keep, out.steps))
        self.seconds["decode"] += time.perf_counter() - began
        news = []
        for row in range(len(self.tokens)):
            active = int(np.sum(keep[row, :count] != NEVER_FED))
            news.append(tokens[row, :active].tolist())
            self.tokens[row] += news[-1]
            self.fed[row] += keep[row, :active].tolist()
        return news

    def stop(self, rows: Sequence[int]) -> None:
        """Ends these rows' answers before their budget."""
        if not rows:
            return
        done = np.array(jax.device_get(self.state.done))
        done[list(rows)] = True
        self.state = dataclasses.replace(self.state, done=self.engine.place(done))

    def cache_tokens(self) -> list[dict[str, int]]:
        """Tokens that each row's two stacks hold."""
        if self.cache is None:
            return [{"shallow": 0, "deep": 0} for _ in self.tokens]
        shallow, deep = jax.device_get((self.cache.shallow.length, self.cache.deep.length))
        return [{"shallow": int(shallow[row]), "deep": int(deep[row])} for row in range(len(self.tokens))]

    def _take_first(self, rows: int, opened: Opened | None, images: Sequence[int]) -> None:
        first, kept = jax.device_get((self.state.token, None if opened is None else opened.kept))
        self.tokens = [[int(token)] for token in first[:rows]]
        self.kept = [
            [] if kept is None else [kept[row, image].tolist() for image in range(count)]
            for row, count in enumerate(images)
        ]


def asked_of(prepared: Sequence[Prepared], rows: int) -> Asked:
    """The requests' wishes as arrays; rows beyond them have no budget and are done from the start."""
    padding = rows - len(prepared)
    numbers = [as_numbers(item.sampler) for item in prepared] + [(0.0, 0, 1.0)] * padding
    temperature, k, p = zip(*numbers, strict=True)
    return Asked(
        budget=np.array([item.budget for item in prepared] + [0] * padding, np.int32),
        temperature=np.array(temperature, np.float32),
        k=np.array(k, np.int32),
        p=np.array(p, np.float32),
        seed=np.array([item.seed for item in prepared] + [0] * padding, np.uint32),
    )
