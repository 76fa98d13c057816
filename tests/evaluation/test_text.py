"""chrF and object F1 by hand."""

import numpy as np
import pytest

from dynllava_jax.demo.dataset import Mixture, sample
from dynllava_jax.demo.descriptions import describe
from dynllava_jax.demo.scenes import draw
from dynllava_jax.evaluation.metrics import mean, perplexity
from dynllava_jax.evaluation.text import chrf, object_f1


def test_chrf() -> None:
    assert chrf("a large red car", "a large red car") == 1.0
    assert chrf("", "car") == chrf("xyz", "car") == 0.0
    # Characters 2 of 3 on both sides, pairs 1 of 2, triples none of 1.
    precision = recall = (2 / 3 + 1 / 2 + 0) / 3
    assert chrf("cat", "car") == pytest.approx(5 * precision * recall / (4 * precision + recall))
    # Recall counts twice: what is missing costs more than what is too much.
    assert chrf("red car", "red car and dog") < chrf("red car and dog", "red car")
    assert chrf("re d ca r", "red car") == 1.0
    # Six in a row are the longest that count; each length loses the one that ends in the wrong letter.
    shares = [(8 - size) / (9 - size) for size in range(1, 7)]
    assert chrf("abcdefgx", "abcdefgh") == pytest.approx(sum(shares) / 6)


@pytest.mark.parametrize(
    ("text", "reference", "wanted"),
    [("red", "a red car", 0.3710506980161646), ("a red car", "red", 0.7023643949930458), ("", "", 0.0)],
)
def test_chrf_of_a_text_that_is_shorter_than_six_is_sacrebleus(text: str, reference: str, wanted: float) -> None:
    """Numbers of sacrebleu 2.6, CHRF()."""
    assert chrf(text, reference) == pytest.approx(wanted)


def test_objects_are_counted_as_often_as_they_are_there() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        scene = draw(rng, "test")
        assert object_f1(describe(scene), scene) == 1.0
        assert object_f1("nothing at all", scene) == 0.0
    scene = sample(0, "test", Mixture(1, 1.0)).scene
    names = [placement.thing.name for placement in scene.placements]
    count = len(names)
    assert object_f1(" ".join(names[1:]), scene) == pytest.approx(2 * (count - 1) / (2 * count - 1))
    assert object_f1(" ".join([*names, names[0]]), scene) == pytest.approx(2 * count / (2 * count + 1))
    assert object_f1(names[0] + "x", scene) == 0.0


def test_means_and_perplexities_have_intervals() -> None:
    values = np.random.default_rng(0).normal(2.0, 0.5, 400)
    found = mean(values)
    assert found.low < 2.0 < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * 0.5 / 20, rel=0.15)
    tokens = np.full(400, 10.0)
    likely = perplexity(values * tokens, tokens)
    assert likely.value == pytest.approx(np.exp(found.value))
    assert likely.low < likely.value < likely.high
    assert perplexity(np.array([3.0, 0.0]), np.array([1.0, 2.0])).value == pytest.approx(np.e)
