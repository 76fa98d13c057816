"""One batch of prepared requests on its way through the engine, seen from the host."""

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np

from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.data.batch import make_batch
from dynllava_jax.data.spans import Sample
from dynllava_jax.errors import InputError
from dynllava_jax.inference.buckets import Shape
from dynllava_jax.inference.cache import Cache, StackCache
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
        opened: what the prefill told, on the device; None of a further turn.
        done: rows whose answers are finished.
        held: for each row the tokens in its `shallow` and its `deep` cache (0 without a cache).
        seconds: wall time so far of `prefill` and `decode`.
    """

    engine: Engine
    shape: Shape
    sparsity: SparsityConfig
    state: DecodeState | NoCacheState
    tokens: list[list[int]]
    fed: list[list[int]]
    kept: list[list[list[int]]]
    opened: Opened | None
    done: np.ndarray
    held: list[dict[str, int]]
    seconds: dict[str, float]

    @staticmethod
    def open(
        engine: Engine, prepared: Sequence[Prepared], sparsity: SparsityConfig, *, use_cache: bool = True
    ) -> "Run":
        """Pads, places and prefills the batch."""
        config = dataclasses.replace(engine.config, sparsity=sparsity)
        shape = engine.buckets.shape(
            config,
            [item.sample.length + (0 if use_cache else item.budget) for item in prepared],
            [len(item.pixels) for item in prepared],
            max(item.budget for item in prepared),
        )
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
        images = [len(item.pixels) for item in prepared]
        return Run._begin(engine, shape, sparsity, state, opened, images, began)

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
        return Run._begin(engine, shape, sparsity, state, None, [0], began)

    @property
    def finished(self) -> bool:
        return bool(np.all(self.done))

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
        self._look()
        self.seconds["decode"] += time.perf_counter() - began
        news = []
        for row in range(len(self.tokens)):
            active = int(np.sum(keep[row, :count] != NEVER_FED))
            news.append(tokens[row, :active].tolist())
            self.tokens[row] += news[-1]
            self.fed[row] += keep[row, :active].tolist()
        return news

    def cut(self, counts: Mapping[int, int]) -> None:
        """Ends answers after so many tokens of each row, as if no later token had ever been drawn."""
        surplus = {row: self.fed[row][count - 1 :] for row, count in counts.items()}
        if not any(surplus.values()) and all(self.done[row] for row in counts):
            return
        done = np.array(self.done)
        shallow, deep = np.zeros((2, len(done)), np.int32)
        for row, count in counts.items():
            self.tokens[row], self.fed[row] = self.tokens[row][:count], self.fed[row][: count - 1]
            done[row], shallow[row], deep[row] = True, len(surplus[row]), sum(surplus[row])
        place = self.engine.place
        self.state = dataclasses.replace(self.state, done=place(done))
        if isinstance(self.state, DecodeState):
            # A cache is only ever appended to: what was drawn in vain stands at its end.
            was = jax.device_get((self.state.cache.shallow.length, self.state.cache.deep.length))
            cache = Cache(
                StackCache(self.state.cache.shallow.blocks, place(was[0] - shallow)),
                StackCache(self.state.cache.deep.blocks, place(was[1] - deep)),
            )
            self.state = dataclasses.replace(self.state, cache=cache)
        self._look()

    @staticmethod
    def _begin(
        engine: Engine,
        shape: Shape,
        sparsity: SparsityConfig,
        state: DecodeState | NoCacheState,
        opened: Opened | None,
        images: Sequence[int],
        began: float,
    ) -> "Run":
        first, patches = jax.device_get((state.token, None if opened is None else opened.kept))
        run = Run(
            engine,
            shape,
            sparsity,
            state,
            tokens=[[int(first[row])] for row in range(len(images))],
            fed=[[] for _ in images],
            kept=[
                [] if patches is None else [patches[row, image].tolist() for image in range(count)]
                for row, count in enumerate(images)
            ],
            opened=opened,
            done=np.zeros(0, bool),
            held=[],
            seconds={},
        )
        _check_patches(run.kept, engine.config.vision.num_features)
        run._look()
        run.seconds = {"prefill": time.perf_counter() - began, "decode": 0.0}
        return run

    def _look(self) -> None:
        """Copies to the host what callers ask for: the device's own arrays are given away to the next segment."""
        cache = self.cache
        lengths = None if cache is None else (cache.shallow.length, cache.deep.length)
        self.done, lengths = jax.device_get((self.state.done, lengths))
        shallow, deep = np.zeros((2, len(self.done)), np.int32) if lengths is None else lengths
        self.held = [{"shallow": int(shallow[row]), "deep": int(deep[row])} for row in range(len(self.tokens))]


def _check_patches(kept: Sequence[Sequence[Sequence[int]]], count: int) -> None:
    """Raises InputError for what no shape shows of a selector of one's own: it merges into no place, or one twice."""
    for patches in itertools.chain.from_iterable(kept):
        if len({patch for patch in patches if 0 <= patch < count}) < len(patches):
            raise InputError(
                "An image selector merges tokens at an index that is none, or stands twice: each must be another token "
                "of the image (see sparsify.selector.Merged)."
            )


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
