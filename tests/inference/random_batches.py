"""Random batches of fixed shapes, each sample held against what it gets alone.

Used by `test_batches.py` (50 batches) and by `tools/soak_batches.py` (as many as asked for).
"""

import dataclasses
import functools

import jax
import numpy as np

from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.data.batch import Batch, make_batch
from dynllava_jax.data.prompt import IMAGE_TOKEN
from dynllava_jax.data.spans import Kind, expand
from dynllava_jax.inference.buckets import Buckets, Shape
from dynllava_jax.inference.decode import NEVER_FED
from dynllava_jax.inference.engine import Engine
from dynllava_jax.inference.prefill import PrefillPlan, prefill
from dynllava_jax.inference.run import Prepared, asked_of
from dynllava_jax.inference.sampling import GREEDY, Greedy, Sampler, Temperature, TopK, TopP
from dynllava_jax.inference.selection import Selection
from dynllava_jax.model.dynllava import DynamicLlava
from dynllava_jax.testing import tiny_config, tiny_model

INSTRUCTED = dataclasses.replace(tiny_config().sparsity, instruct_selector="learned")
PLAIN = dataclasses.replace(INSTRUCTED, instruct_selector=None)
CONFIG = dataclasses.replace(tiny_config(), sparsity=INSTRUCTED)

SHAPES = (
    (Shape(rows=1, images=1, length=64, deep_length=64, answer=16), PLAIN),
    (Shape(rows=2, images=0, length=48, deep_length=48, answer=16), PLAIN),
    (Shape(rows=4, images=1, length=64, deep_length=56, answer=16), PLAIN),
    (Shape(rows=4, images=2, length=96, deep_length=96, answer=16), INSTRUCTED),
    (Shape(rows=4, images=2, length=64, deep_length=44, answer=24), INSTRUCTED),
    (Shape(rows=8, images=1, length=48, deep_length=40, answer=8), INSTRUCTED),
)
ALONE = {images: Shape(rows=1, images=images, length=96, deep_length=96, answer=24) for images in (0, 1, 2)}

TOLERANCE = 2e-5
MARGIN = 1e-4
STOP_IDS = tuple(range(2, 512, 40))
"""So many that some answers end before their budget."""


def make_engine(config: ModelConfig = CONFIG, seed: int = 0) -> Engine:
    buckets = Buckets(rows=(1, 4), images=(0, 1, 2), length=(96,), answer=(24,), instruction=(32,), segment=24)
    return Engine(tiny_model(config, seed), buckets=buckets, stop_ids=STOP_IDS, collect_logits=True)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One sample's answer: tokens, decision on each token but the last, patches kept, logits behind each token."""

    tokens: list[int]
    keep: list[int]
    kept: list[list[int]]
    logits: np.ndarray


@dataclasses.dataclass
class Figures:
    """What was compared so far. `exempted` are samples that differ at a near tie."""

    batches: int = 0
    samples: int = 0
    tokens: int = 0
    decisions: int = 0
    stored: int = 0
    exempted: int = 0
    worst: float = 0.0

    def __str__(self) -> str:
        share = self.stored / max(1, self.decisions)
        return (
            f"{self.batches} batches, {self.samples} samples, {self.tokens} tokens, {self.decisions} keep decisions "
            f"({share:.0%} kept), {self.exempted} samples exempted, worst logit error {self.worst:.1e} "
            f"(allowed {TOLERANCE})"
        )


def prompt(
    rng: np.random.Generator, text: int, images: int = 0, budget: int = 16, sampler: Sampler = GREEDY
) -> Prepared:
    """A random prompt of `text` tokens with `images` images at random places."""
    ids = rng.integers(3, 512, text).tolist()
    for _ in range(images):
        ids.insert(rng.integers(0, len(ids) + 1), IMAGE_TOKEN)
    sample = expand(ids, None, image_tokens=CONFIG.image_tokens, round_ids=())
    pixels = [rng.standard_normal((56, 56, 3)).astype(np.float32) for _ in range(images)]
    return Prepared(sample, pixels, budget, sampler, int(rng.integers(2**32)))


def random_batch(rng: np.random.Generator, shape: Shape) -> list[Prepared]:
    """1 … rows samples that fit, the first with an image where there is room; the other rows stay padding."""
    prompts = []
    for _ in range(rng.integers(1, shape.rows + 1)):
        images = int(rng.integers(min(shape.images, not prompts), shape.images + 1))
        most = min(shape.length - images * CONFIG.image_tokens, shape.deep_length - images * CONFIG.kept_image_tokens)
        text = most if rng.random() < 0.2 else int(rng.integers(1, most + 1))
        prompts.append(prompt(rng, text, images, int(rng.integers(1, shape.answer + 1)), random_sampler(rng)))
    return prompts


def random_sampler(rng: np.random.Generator) -> Sampler:
    choices: list[Sampler] = [GREEDY, GREEDY, GREEDY, Temperature(0.8), TopK(5, 1.5), TopP(0.9)]
    return choices[rng.integers(len(choices))]


def run(engine: Engine, prompts: list[Prepared], shape: Shape, sparsity: SparsityConfig) -> list[Outcome]:
    """The batch through the engine's own programs."""
    batch = make_batch(
        [one.sample for one in prompts],
        [one.pixels for one in prompts],
        length=shape.length,
        slots=shape.images,
        rows=shape.rows,
    )
    state, opened = engine.open(batch, asked_of(prompts, shape.rows), shape, sparsity)
    first = np.asarray(state.token)
    state, out = engine.advance(state, shape, sparsity)
    assert np.all(np.asarray(state.done))
    tokens, keep, logits = (np.asarray(x) for x in (out.tokens, out.keep, out.logits))
    outcomes = []
    for row, one in enumerate(prompts):
        steps = int(np.sum(keep[row] != NEVER_FED))
        kept = [] if opened.kept is None else [np.asarray(opened.kept)[row, i].tolist() for i in range(len(one.pixels))]
        outcomes.append(
            Outcome(
                tokens=[int(first[row]), *tokens[row, :steps].tolist()],
                keep=keep[row, :steps].tolist(),
                kept=kept,
                logits=np.concatenate([np.asarray(opened.logits)[row, None], logits[row, :steps]]),
            )
        )
    return outcomes


def compare(engine: Engine, rng: np.random.Generator, figures: Figures) -> None:
    """One random batch against its samples alone. Raises AssertionError where they differ and no tie excuses it."""
    shape, sparsity = SHAPES[rng.integers(len(SHAPES))]
    prompts = random_batch(rng, shape)
    figures.batches += 1
    for one, together in zip(prompts, run(engine, prompts, shape, sparsity), strict=True):
        [alone] = run(engine, [one], ALONE[len(one.pixels)], sparsity)
        figures.samples += 1
        figures.tokens += len(alone.tokens)
        figures.decisions += len(alone.keep)
        figures.stored += sum(alone.keep)
        if (together.tokens, together.keep, together.kept) != (alone.tokens, alone.keep, alone.kept):
            excuse(engine, one, sparsity, together, alone)
            figures.exempted += 1
            continue
        error = np.max(np.abs(together.logits - alone.logits) / max(1.0, np.max(np.abs(alone.logits))))
        figures.worst = max(figures.worst, float(error))
        assert error <= TOLERANCE, f"logits differ by {error:.1e} in {shape}"


def excuse(engine: Engine, one: Prepared, sparsity: SparsityConfig, together: Outcome, alone: Outcome) -> None:
    """Holds unless the first difference is a decision, or a token drawn from agreeing logits, at a near tie."""
    pairs = list(zip(together.tokens, alone.tokens, strict=False))
    at = next((step for step, (ours, theirs) in enumerate(pairs) if ours != theirs), len(pairs))
    if together.kept != alone.kept or together.keep[:at] != alone.keep[:at] or at == len(pairs):
        margin = float(np.min(np.abs(margins(engine, one, alone.tokens[:at], sparsity))))
        assert margin <= MARGIN, f"decisions differ at a margin of {margin}"
        return
    scale = max(1.0, float(np.max(np.abs(alone.logits))))
    assert np.max(np.abs(together.logits[: at + 1] - alone.logits[: at + 1])) <= TOLERANCE * scale
    if isinstance(one.sampler, Greedy):
        best, second = np.sort(alone.logits[at])[:-3:-1]
        assert best - second <= MARGIN, f"tokens differ at a margin of {best - second}"


def margins(engine: Engine, one: Prepared, answer: list[int], sparsity: SparsityConfig) -> np.ndarray:
    """How clear every decision was: patches (gap between kept and dropped), instruction, then each answer token.

    From one pass over prompt and answer, whose shallow stack sees what decoding saw.
    """
    sample = one.sample
    tokens = np.concatenate([sample.tokens, np.array(answer, np.int32)])
    kind = np.concatenate([sample.kind, np.full(len(answer), Kind.ANSWER, np.int32)])
    sample = dataclasses.replace(sample, tokens=tokens, kind=kind)
    batch = make_batch([sample], [one.pixels], length=128, slots=len(one.pixels), rows=1)
    out = _judge(engine.model, batch, PrefillPlan(sparsity, 128))
    parts = []
    if out.image_scores is not None:
        ordered = np.sort(np.asarray(out.image_scores)[0], axis=-1)[:, ::-1]
        parts.append(ordered[:, CONFIG.kept_image_tokens - 1] - ordered[:, CONFIG.kept_image_tokens])
    logits = np.asarray(out.text_logits)[0, : sample.length]
    judged = (Kind.LAST_INSTRUCTION, Kind.ANSWER) if sparsity.instruct_selector else (Kind.ANSWER,)
    parts.append((logits[:, 0] - logits[:, 1])[np.isin(kind, judged)])
    return np.concatenate(parts)


@functools.partial(jax.jit, static_argnums=2)
def _judge(model: DynamicLlava, batch: Batch, plan: PrefillPlan) -> Selection:
    return prefill(model, batch, jax.random.split(jax.random.key(0), 1), plan).selection
