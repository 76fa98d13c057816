"""The predictors' health: each number on cases known by hand, each warning by forcing its collapse."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.training.health import (
    Judged,
    decisions,
    gradient_norms,
    overlap,
    overlap_by_chance,
    warnings,
)

SPARSITY = SparsityConfig()
ROWS, SIZE, KEPT = 6, 50, 10


overlap = jax.jit(overlap, static_argnames="kept")


def judged(margin: Any, mask: Any = None, tau: float = 1.0, seed: int = 0) -> Judged:
    """What a predictor with these margins leads to under Gumbel noise."""
    margin = jnp.asarray(margin, jnp.float32)
    logits = jnp.stack([margin, jnp.zeros_like(margin)], axis=-1)
    noise = jax.random.gumbel(jax.random.key(seed), logits.shape)
    kept = jnp.argmax((logits + noise) / tau, axis=-1) == 0
    mask = jnp.ones(margin.shape, bool) if mask is None else jnp.asarray(mask)
    return Judged(logits, kept.astype(jnp.float32), mask)


def drawn(seed: int = 0, rows: int = ROWS) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, SIZE)).astype(np.float32)


def health(place: str, of: Judged) -> dict[str, float]:
    found = {f"{place}/{name}": float(value) for name, value in jax.jit(decisions)(of).items()}
    if place == "image":
        found["image/overlap"] = float(overlap(of, KEPT))
        found["image/overlap_chance"] = overlap_by_chance(KEPT, SIZE)
    return found


def test_numbers_of_known_margins() -> None:
    found = health(
        "output", judged([[math.log(3.0), -math.log(3.0)], [math.log(3.0), 99.0]], [[True, True], [True, False]])
    )
    assert found["output/soft_rate"] == pytest.approx((0.75 + 0.25 + 0.75) / 3)
    assert found["output/argmax_rate"] == pytest.approx(2 / 3)
    assert found["output/entropy"] == pytest.approx(0.811278, abs=1e-5)
    assert found["output/spread"] == pytest.approx(math.log(3.0) / 2, rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(-200.0, 200.0))
def test_padding_changes_nothing_and_all_is_finite(seed: int, scale: float) -> None:
    margin = drawn(seed) * scale
    plain = health("output", judged(margin))
    wide = np.concatenate([margin, np.full((ROWS, 7), 1e4, np.float32)], axis=1)
    wide = np.concatenate([wide, np.full((2, SIZE + 7), -1e4, np.float32)])
    mask = np.zeros(wide.shape, bool)
    mask[:ROWS, :SIZE] = True
    padded = judged(wide, mask)
    padded = padded._replace(kept=padded.kept.at[:ROWS, :SIZE].set(judged(margin).kept))
    found = health("output", padded)
    assert all(math.isfinite(value) for value in found.values())
    assert found == pytest.approx(plain, rel=1e-4, abs=1e-4)
    assert 0.0 <= found["output/entropy"] <= 1.0


def test_nothing_to_judge_is_no_number() -> None:
    empty = judged(drawn(), np.zeros((ROWS, SIZE), bool))
    assert all(math.isnan(value) for value in health("output", empty).values())
    assert math.isnan(overlap(empty, KEPT))
    assert warnings(health("image", empty), SPARSITY) == []
    assert warnings({}, SPARSITY) == []


def test_overlap_of_the_same_of_random_and_of_disjoint_positions() -> None:
    same = np.tile(drawn()[:1], (ROWS, 1))
    assert overlap(judged(same), KEPT) == pytest.approx(1.0)
    rows = 100
    assert overlap(judged(drawn(rows=rows)), KEPT) == pytest.approx(overlap_by_chance(KEPT, SIZE), abs=0.01)
    apart = np.eye(5).repeat(KEPT, axis=1)
    assert overlap(judged(apart), KEPT) == pytest.approx(0.0)
    # Rows that only fill the batch are no images.
    mask = np.ones((ROWS, SIZE), bool)
    mask[-2:] = False
    mixed = np.concatenate([same[:-2], drawn(7)[:2]])
    assert overlap(judged(mixed, mask), KEPT) == pytest.approx(1.0)


def test_gradient_norms_by_part() -> None:
    state = nnx.State(
        {
            "decoder": {"a": nnx.Param(jnp.array([3.0])), "b": nnx.Param(jnp.array([4.0]))},
            "projector": {"c": nnx.Param(jnp.ones(4, jnp.bfloat16))},
        }
    )
    assert {part: float(norm) for part, norm in gradient_norms(state).items()} == {"decoder": 5.0, "projector": 2.0}


@pytest.mark.parametrize("place", ["image", "output"])
def test_a_healthy_predictor_is_not_warned_of(place: str) -> None:
    target = getattr(SPARSITY, f"{place}_keep_rate")
    margin = 3.0 * drawn() + 4.0 * math.log(target / (1 - target)) / 2
    assert warnings(health(place, judged(margin)), SPARSITY) == []


@pytest.mark.parametrize(
    ("place", "margin", "words"),
    [
        ("image", drawn() + 15.0, ["image predictor keeps everything (100% where 20%", "loss.mask_weight"]),
        ("image", drawn() - 15.0, ["image predictor drops everything (0% where 20%", "predictor_learning_rate"]),
        ("output", drawn() + 15.0, ["output predictor keeps everything (100% where 50%", "loss.mask_weight"]),
        ("output", drawn() - 15.0, ["output predictor drops everything", "gumbel.start"]),
        ("instruct", drawn() - 15.0, ["instruct predictor drops everything (0% where 70%"]),
        ("output", 0.1 * drawn() - 0.5, ["would keep 0% in use", "gumbel.end"]),
        ("image", np.tile(drawn()[:1], (ROWS, 1)), ["same positions of every image (overlap 1.00, by chance 0.11)"]),
    ],
)
def test_each_collapse_is_named_with_what_to_try(place: str, margin: np.ndarray, words: list[str]) -> None:
    (sentence,) = warnings(health(place, judged(margin)), SPARSITY)
    for word in words:
        assert word in sentence


def test_targets_beyond_the_limits_are_no_collapse() -> None:
    keeps_all = health("output", judged(drawn() + 15.0))
    assert warnings(keeps_all, SparsityConfig(output_keep_rate=1.0)) == []
