"""On a CPU, answers computed by pieces of weights are those by whole matrices."""

import jax
import numpy as np
import pytest

from dynllava_jax.nn import pieces
from dynllava_jax.nn.pieces import Pieces
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.testing import tiny_assistant
from tests.inference.random_batches import CONFIG, PLAIN, SHAPES, TOLERANCE, make_engine, prompt, run


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Every matrix is cut, most with a rest; the list takes up the shapes that are multiplied."""
    monkeypatch.setattr(pieces, "_LEAST", 1)
    monkeypatch.setattr(pieces, "_ROWS", 24)
    shapes, multiply = [], Pieces.multiply

    def told(self: Pieces, x: jax.Array) -> jax.Array:
        shapes.append(x.shape)
        return multiply(self, x)

    monkeypatch.setattr(Pieces, "multiply", told)
    return shapes


def test_answers_are_those_of_whole_matrices(small_pieces: list[tuple[int, ...]]) -> None:
    rng, shape = np.random.default_rng(0), SHAPES[2][0]
    prompts = [prompt(rng, 20, 1) for _ in range(3)]
    cut, whole = make_engine(), make_engine()
    whole._in_pieces = False
    answers = run(cut, prompts, shape, PLAIN)
    layer = 7  # products of a stack, which is traced once
    assert [shape[:-1] for shape in small_pieces] == [(4, 1)] * 2 * layer
    for one, other in zip(answers, run(whole, prompts, shape, PLAIN), strict=True):
        assert one.tokens == other.tokens
        assert one.keep == other.keep
        np.testing.assert_allclose(one.logits, other.logits, rtol=0, atol=TOLERANCE)


def test_a_mesh_multiplies_by_whole_matrices() -> None:
    engine = tiny_assistant(CONFIG).engine
    assert engine._extend_plan("output", PLAIN).in_pieces
    mesh = make_mesh("data=1", jax.devices()[:1])
    assert not type(engine)(engine.model, buckets=engine.buckets, mesh=mesh)._extend_plan("output", PLAIN).in_pieces
