"""Generation on a mesh of eight simulated devices: the same answers, and every sample stays where it is."""

import dataclasses
import logging
import re
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

import dynllava_jax as dl
from dynllava_jax.data.batch import make_batch
from dynllava_jax.data.spans import expand
from dynllava_jax.demo.pictures import sample
from dynllava_jax.inference.assistant import Assistant
from dynllava_jax.inference.buckets import Buckets
from dynllava_jax.inference.decode import NEVER_FED
from dynllava_jax.inference.engine import Engine
from dynllava_jax.inference.run import Prepared, asked_of
from dynllava_jax.inference.sampling import GREEDY, Temperature
from dynllava_jax.kernels import api
from dynllava_jax.sharding import specs
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.testing import tiny_assistant, tiny_config, tiny_model

CONFIG = tiny_config()
BUCKETS = Buckets(rows=(8,), images=(2,), length=(64,), answer=(16,), instruction=(32,), segment=16)
MESHES = [
    "data=2,tensor=4",
    *(pytest.param(spec, marks=pytest.mark.slow) for spec in ("data=8", "tensor=4", "fsdp=2,tensor=2")),
]
IMAGE = -200


class Result(NamedTuple):
    """One batch of answers: first token and the others, decisions, patches, logits of the prompt and each step."""

    tokens: list[np.ndarray]
    keep: np.ndarray
    kept: np.ndarray
    logits: list[np.ndarray]


def prompts() -> list[Prepared]:
    """Eight, with one image, two or none, of different lengths and budgets, one drawn at random."""
    rng = np.random.default_rng(0)
    made = []
    for row, marks in enumerate([(5,), (0,), (), (2, 7), (9,), (4,), (1, 2), ()]):
        ids = rng.integers(3, 500, 10 + 2 * row).tolist()
        for mark in reversed(marks):
            ids.insert(mark, IMAGE)
        sample = expand(ids, None, image_tokens=CONFIG.image_tokens, round_ids=())
        pixels = [rng.standard_normal((56, 56, 3)).astype(np.float32) for _ in marks]
        made.append(Prepared(sample, pixels, 6 + row, Temperature() if row == 4 else GREEDY, row))
    return made


def engine(spec: str | None, attention: tuple[str, ...] | None = None) -> Engine:
    model = tiny_model()
    mesh = None if spec is None else make_mesh(spec)
    if mesh is not None:
        model = jax.device_put(model, specs.param_shardings(model, mesh, CONFIG))
    return Engine(model, buckets=BUCKETS, mesh=mesh, attention=attention, collect_logits=True)


def arguments() -> tuple[Any, ...]:
    asked = prompts()
    lengths, images = [one.sample.length for one in asked], [one.pixels for one in asked]
    shape = BUCKETS.shape(CONFIG, lengths, [len(own) for own in images], 16)
    batch = make_batch([one.sample for one in asked], images, length=shape.length, slots=shape.images, rows=8)
    return batch, asked_of(asked, 8), shape, CONFIG.sparsity


def run(on: Engine) -> Result:
    batch, asked, shape, sparsity = arguments()
    state, opened = on.open(batch, asked, shape, sparsity)
    first = np.asarray(state.token)
    _, out = on.advance(state, shape, sparsity)
    keep = np.asarray(out.keep)
    fed = keep != NEVER_FED
    present = np.arange(2) < batch.image_count[:, None]
    return Result(
        [first, np.where(fed, out.tokens, -1)],
        keep,
        np.where(present[..., None], np.asarray(opened.kept), -1),
        [np.asarray(opened.logits), np.where(fed[..., None], np.asarray(out.logits), 0)],
    )


@pytest.fixture(scope="module")
def alone() -> Result:
    return run(engine(None))


@pytest.mark.parametrize("spec", MESHES)
def test_a_mesh_gives_the_same_answers(spec: str, alone: Result) -> None:
    assert_same(run(engine(spec)), alone)


@pytest.mark.parametrize(
    ("spec", "kernel"),
    [
        pytest.param(None, "triton", marks=pytest.mark.slow),
        pytest.param(None, "tpu", marks=pytest.mark.slow),
        pytest.param("data=2,tensor=2", "triton", marks=pytest.mark.slow),
        ("data=2,tensor=4", "tpu"),
    ],
)
def test_the_kernels_give_the_same_answers(
    spec: str | None, kernel: str, alone: Result, caplog: pytest.LogCaptureFixture
) -> None:
    """Run by the interpreter, on two meshes too: one splits the two key/value heads, one has too few of them."""
    api._say_once.cache_clear()
    with caplog.at_level(logging.INFO, api.__name__):
        assert_same(run(engine(spec, (f"{kernel}-interpret", "xla"))), alone)
    assert {f"{op} runs as {kernel}-interpret" for op in ("attention", "cached_attention")} <= set(caplog.messages)


def assert_same(sharded: Result, alone: Result) -> None:
    for ours, theirs in zip(sharded.logits, alone.logits, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-5 * max(1.0, np.abs(theirs).max()))
    for ours, theirs in zip(sharded.tokens, alone.tokens, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(sharded.keep, alone.keep)
    np.testing.assert_array_equal(sharded.kept, alone.kept)
    assert {0, 1} <= set(alone.keep.flatten())


def test_too_few_heads_are_replicated_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    specs._log_once.cache_clear()
    with caplog.at_level(logging.INFO, "dynllava_jax.sharding"):
        on = engine("tensor=4")
    assert "decoder kv_heads (2) replicated: mesh tensor=4 does not divide it" in caplog.text
    decoder = on.model.decoder
    assert decoder.deep.attention.key.kernel.get_value().sharding.is_fully_replicated
    assert not decoder.deep.attention.query.kernel.get_value().sharding.is_fully_replicated


class Recorded:
    """A compiled function that keeps the text of what it runs."""

    def __init__(self, function: Any):
        self.function, self.text = function, ""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        compiled = self.function.lower(*args, **kwargs).compile()
        self.text = compiled.as_text()
        return compiled(*args)


def test_no_batch_is_gathered() -> None:
    """A sample's features, hidden states and cache never leave their device: eight rows, two on each."""
    on = engine("data=4,tensor=2")
    on._prefill, on._segment = Recorded(on._prefill), Recorded(on._segment)  # type: ignore[assignment]
    run(on)
    for program in (on._prefill, on._segment):
        results = gathered(program.text)  # type: ignore[attr-defined]
        # Each device has two rows: whatever has eight is the whole batch. The vocabulary may meet, for sampling.
        assert not [shape for shape in results if 8 in shape], results


def gathered(text: str) -> list[tuple[int, ...]]:
    """Shapes that the program's all-gathers give."""
    assert "all-reduce" in text  # it is a program for several devices
    results = []
    for line in text.splitlines():
        if re.search(r"\ball-gather(-start)?\(", line):
            types = line.split("=", 1)[1].split("all-gather", 1)[0]
            results += [tuple(map(int, dims.split(","))) for dims in re.findall(r"\[([\d,]+)\]", types)]
    return results


def test_a_batch_is_cut_at_what_the_mesh_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """With batches of at most 4, eight devices would compute half of each for nothing."""
    shared, mesh = tiny_assistant(), make_mesh("data=8")
    model = jax.device_put(shared.engine.model, specs.param_shardings(shared.engine.model, mesh, CONFIG))
    buckets = dataclasses.replace(BUCKETS, rows=(1, 4), images=(0,))
    split = Assistant(model, shared.tokenizer, buckets=buckets, mesh=mesh)
    assert split.engine.buckets.rows == (8,)
    opened = []
    opening = split.engine.open
    monkeypatch.setattr(split.engine, "open", lambda *args: opened.append(args[2].rows) or opening(*args))
    questions = [dl.Request(f"What is {number}?", max_new_tokens=2) for number in range(6)]
    together = split.generate_batch(questions)
    assert opened == [8]
    alone = [shared.generate(None, asked.question, max_new_tokens=2) for asked in questions]
    assert [answer.token_ids for answer in together if isinstance(answer, dl.Answer)] == [a.token_ids for a in alone]


@pytest.mark.slow
def test_load_takes_a_mesh() -> None:
    scene = sample("sunset")
    buckets = Buckets(rows=(1,), images=(1,), length=(768,), answer=(16,), segment=16)
    own = jax.make_mesh((2, 1, 1), ("tensor", "data", "fsdp"), devices=jax.devices()[:2])
    answers = []
    for mesh in (None, "data=1,tensor=2", own):
        # In bfloat16, as it is stored, scores at the edge of what is kept tie, and rounding decides.
        assistant = dl.load("demo", mesh=mesh, buckets=buckets, dtype="float32")
        answers.append(assistant.generate(scene.path, scene.question, max_new_tokens=5))
    for answer in answers[1:]:
        assert answer.token_ids == answers[0].token_ids
        assert answer.kept_image_tokens == answers[0].kept_image_tokens
        assert answer.kept_output_tokens == answers[0].kept_output_tokens


def test_a_mesh_with_other_axes_is_refused() -> None:
    with pytest.raises(dl.InputError, match="has the axes x; name them data, fsdp, tensor"):
        dl.load("demo", mesh=jax.make_mesh((2,), ("x",), devices=jax.devices()[:2]))
