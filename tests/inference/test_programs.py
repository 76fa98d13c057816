"""How many programs are compiled: at most N for any stream of requests, none for a shape that was seen."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache.compilation_cache import reset_cache

from dynllava_jax.config.model import ModelConfig
from dynllava_jax.errors import InputError
from dynllava_jax.inference.assistant import Assistant
from dynllava_jax.inference.buckets import Buckets, Shape
from dynllava_jax.inference.load import load
from dynllava_jax.inference.request import Request
from dynllava_jax.inference.sampling import GREEDY, Sampler, Temperature, TopK, TopP
from dynllava_jax.testing import synthetic_image, tiny_assistant, tiny_config

COMPILED = "/jax/core/compile/backend_compile_duration"
"""What JAX records for every program, whatever asked for it and wherever it came from."""

BUCKETS = Buckets(rows=(4,), images=(0, 2), length=(160, 256), answer=(8, 32), instruction=(32,), segment=16)
WORDS = ("is", "the", "red", "cat", "left", "of", "a", "blue", "table", "or", "under", "it")


class Compiled:
    """Counts compiled programs, stray operations outside `jit` included."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        self.count += event == COMPILED

    def since(self, before: int) -> int:
        return self.count - before


@pytest.fixture(scope="module")
def compiled() -> Iterator[Compiled]:
    counter = Compiled()
    jax.monitoring.register_event_duration_secs_listener(counter)
    yield counter
    jax.monitoring.unregister_event_duration_listener(counter)


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return tiny_assistant(buckets=BUCKETS)


@pytest.mark.slow
def test_two_hundred_random_requests(assistant: Assistant, compiled: Compiled) -> None:
    rng, before, asked = np.random.default_rng(0), compiled.count, 0
    while asked < 200:
        requests = [random_request(rng) for _ in range(rng.choice([1, 1, 2, 6]))]
        answers = assistant.generate_batch(requests)
        assert not [answer for answer in answers if isinstance(answer, Exception)]
        asked += len(requests)
    print(f"{asked} requests compiled {compiled.since(before)} programs; N = {assistant.programs}")
    assert compiled.since(before) <= assistant.programs


def test_a_shape_that_was_seen_compiles_nothing(assistant: Assistant, compiled: Compiled) -> None:
    picture = synthetic_image(3)
    assistant.generate(picture, "What is left?", max_new_tokens=20)
    before = compiled.count
    assistant.generate(picture, "Where is the red cat?", max_new_tokens=9, sampler=TopP(0.9), seed=7)
    for _ in assistant.stream(synthetic_image(4), "What is under it?", max_new_tokens=16, every=3):
        pass
    assert compiled.since(before) == 0


def test_warmup_leaves_nothing_to_compile(compiled: Compiled) -> None:
    assistant = tiny_assistant(seed=1, buckets=BUCKETS)
    shape = Shape(rows=4, images=2, length=160, deep_length=160, answer=32)
    assert list(assistant.warmup([shape])) == [shape]
    before = compiled.count
    answer = assistant.generate(synthetic_image(5), "What is in the picture? " + "cat " * 40, max_new_tokens=12)
    assert answer.cache_tokens["shallow"] > 128
    assert compiled.since(before) == 0


def test_warmup_is_for_single_requests_with_an_answer_of_any_length(compiled: Compiled) -> None:
    config = tiny_config()
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, max_positions=160))
    buckets = Buckets(rows=(1, 4), images=(0, 2, 4), length=(160,), answer=(160,))
    assistant = tiny_assistant(config, buckets=buckets)
    shapes = list(assistant.warmup())
    assert {(shape.rows, shape.images, shape.answer) for shape in shapes} == {(1, 0, 160), (1, 2, 160)}
    before = compiled.count
    assistant.generate(None, "What is red?")
    assistant.generate(synthetic_image(6), "What is red?")
    assert compiled.since(before) == 0


@pytest.fixture
def own_cache() -> Iterator[None]:
    """Every program counts for it, and the tests' shared one comes back."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update(names[1], 0)
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    reset_cache()


@pytest.mark.usefixtures("own_cache")
def test_programs_are_kept_in_the_folder_that_was_named_last(tmp_path: Path) -> None:
    """JAX by itself goes on with the folder of the first program that a process compiled."""
    for number in range(2):
        load("demo", compile_cache=tmp_path / str(number))
        jax.jit(lambda x, number=number: x + number)(1.0)
        assert any((tmp_path / str(number)).iterdir())


@pytest.mark.usefixtures("own_cache")
def test_their_folder_may_be_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    load("demo", compile_cache="~/programs")
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "programs")  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(InputError, match="compile_cache is empty; name something, or leave it out"):
        load("demo", compile_cache="")


@pytest.mark.parametrize("seed", range(3))
def test_every_shape_that_requests_can_have_is_counted(seed: int) -> None:
    rng, config = np.random.default_rng(seed), tiny_config()
    buckets = Buckets(rows=(1, 4), images=(0, 1, 2), length=(32, 64, 96, 128), answer=(16, 64), instruction=(32,))
    counted = set(buckets.shapes(config))
    for _ in range(1000):
        assert buckets.shape(config, *random_lengths(rng, config)) in counted


def random_lengths(rng: np.random.Generator, config: ModelConfig) -> tuple[list[int], list[int], int]:
    images = rng.integers(0, 3, rng.integers(1, 5)).tolist()
    lengths = [int(rng.integers(1 + count * config.image_tokens, 129)) for count in images]
    return lengths, images, int(rng.integers(1, 65))


def random_request(rng: np.random.Generator) -> Request:
    question = " ".join(rng.choice(WORDS, rng.integers(1, 25)))
    images = [synthetic_image(int(seed)) for seed in rng.integers(0, 50, rng.integers(0, 3))]
    samplers: list[Sampler] = [GREEDY, Temperature(0.7), TopK(5), TopP(0.8)]
    return Request(
        question, images, int(rng.integers(1, 33)), samplers[rng.integers(len(samplers))], int(rng.integers(2**32))
    )
