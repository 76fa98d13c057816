"""The predictors' health: each number on cases known by hand, each warning by forcing its collapse."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.sparsify.gumbel import straight_through
from dynllava_jax.sparsify.select import top_k
from dynllava_jax.training.decisions import Decisions, Verdict
from dynllava_jax.training.health import gradient_norms, health, overlap, warnings

SPARSITY = SparsityConfig()
ROWS, SIZE, KEPT = 6, 50, 10
BY_CHANCE = 0.2 / 1.8


@jax.jit
def _health(margin: jax.Array, mask: jax.Array, noise: jax.Array) -> Any:
    """Of margins [R, N] as those of images (one a sample) and of answers."""
    logits = jnp.stack([margin, jnp.zeros_like(margin)], axis=-1)
    kept = straight_through(logits, noise, 1.0)
    best = jnp.sum(jax.nn.one_hot(top_k(margin[:, None], KEPT), margin.shape[1]), axis=-2)
    miss = jnp.zeros(len(margin))
    image = Verdict(logits[:, None], kept[:, None], mask[:, None], miss)
    text = Verdict(logits, jnp.where(mask, kept, 1.0), mask, miss)
    trained = Decisions(None, image, text, text)
    by_sign = text._replace(keep=jnp.where(mask, margin > 0, 1.0).astype(jnp.float32))
    return health(trained, Decisions(None, image._replace(keep=best), by_sign, by_sign))


def numbers(margin: Any, mask: Any = None, extra: tuple[int, int] = (0, 0)) -> dict[str, float]:
    """`extra` rows and tokens of padding are given to the batch."""
    margin = np.asarray(margin, np.float32)
    mask = np.ones(margin.shape, bool) if mask is None else np.asarray(mask)
    noise = np.array(jax.random.gumbel(jax.random.key(0), (*margin.shape, 2)))
    pad = tuple((0, more) for more in extra)
    margin = np.pad(margin, pad, constant_values=1e4)
    found = _health(margin, np.pad(mask, pad), np.pad(noise, (*pad, (0, 0))))
    return {name: float(value) for name, value in found.items()}


def only(place: str, margin: Any) -> dict[str, float]:
    return {name: value for name, value in numbers(margin).items() if name.startswith(place)}


def drawn(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((ROWS, SIZE)).astype(np.float32)


def test_numbers_of_known_margins() -> None:
    margin, mask = np.full((2, SIZE), math.log(3.0)), np.zeros((2, SIZE), bool)
    margin[0, 1], mask[0, :2], mask[1, 0] = -math.log(3.0), True, True
    found = numbers(margin, mask)
    assert found["output_soft_rate"] == pytest.approx((0.75 + 0.25 + 0.75) / 3)
    assert found["output_inference_rate"] == pytest.approx(2 / 3)
    assert found["output_entropy"] == pytest.approx(0.811278, abs=1e-5)
    assert found["output_spread"] == pytest.approx(math.log(3.0) / 2, rel=1e-5)
    assert found["image_overlap_chance"] == pytest.approx(BY_CHANCE)
    assert len(found) == 3 * 5 + 2


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.floats(-200.0, 200.0))
def test_padding_changes_nothing_and_all_is_finite(seed: int, scale: float) -> None:
    margin = drawn(seed) * np.float32(scale)
    plain, padded = only("output", margin), numbers(margin, extra=(2, 7))
    assert all(math.isfinite(value) for value in plain.values())
    assert {name: padded[name] for name in plain} == pytest.approx(plain, rel=1e-4, abs=1e-4)
    assert 0.0 <= plain["output_entropy"] <= 1.0


def test_nothing_to_judge_is_no_number() -> None:
    empty = numbers(drawn(), np.zeros((ROWS, SIZE), bool))
    assert all(math.isnan(value) for value in empty.values())
    assert warnings(empty, SPARSITY) == {}
    assert warnings({}, SPARSITY) == {}


def kept(*rows: range) -> jax.Array:
    return jnp.stack([jnp.zeros(SIZE).at[np.asarray(row)].set(1.0) for row in rows])


def test_overlap_of_the_same_of_apart_and_of_random_positions() -> None:
    there = jnp.ones(2, bool)
    assert overlap(kept(range(9), range(9)), there) == 1.0
    assert overlap(kept(range(9), range(9, 18)), there) == 0.0
    assert overlap(kept(range(10), range(5, 15)), there) == pytest.approx(1 / 3)
    assert numbers(drawn())["image_overlap"] == pytest.approx(BY_CHANCE, abs=0.05)
    # Rows that only fill the batch are no images.
    mixed = kept(range(9), range(30, 39), range(9))
    assert overlap(mixed, jnp.array([True, False, True])) == 1.0
    assert math.isnan(overlap(mixed, jnp.array([True, False, False])))


def test_gradient_norms_by_part() -> None:
    gradients = {
        "decoder/a": jnp.array([3.0]),
        "decoder/b/kernel": jnp.array([4.0]),
        "projector/c": jnp.ones(4, jnp.bfloat16),
    }
    assert {part: float(norm) for part, norm in gradient_norms(gradients).items()} == {"decoder": 5.0, "projector": 2.0}


@pytest.mark.parametrize("place", ["image", "output"])
def test_a_healthy_predictor_is_not_warned_of(place: str) -> None:
    target = getattr(SPARSITY, f"{place}_keep_rate")
    margin = 3.0 * drawn() + 4.0 * math.log(target / (1 - target)) / 2
    assert warnings(only(place, margin), SPARSITY) == {}


@pytest.mark.parametrize(
    ("place", "margin", "words"),
    [
        ("image", drawn() + 15.0, ["image predictor keeps everything (100% where 20%", "loss.mask_weight"]),
        ("image", drawn() - 15.0, ["image predictor drops everything (0% where 20%", "predictor_learning_rate"]),
        ("output", drawn() + 15.0, ["output predictor keeps everything (100% where 50%", "loss.mask_weight"]),
        ("output", drawn() - 15.0, ["output predictor drops everything", "gumbel.start"]),
        ("instruct", drawn() - 15.0, ["instruct predictor drops everything (0% where 70%"]),
        ("output", 0.1 * drawn() - 0.7, ["would keep 0% in use", "gumbel.end"]),
        ("image", np.tile(drawn()[:1], (ROWS, 1)), ["same positions of every image (overlap 1.00, by chance 0.11)"]),
    ],
)
def test_each_collapse_is_named_with_what_to_try(place: str, margin: np.ndarray, words: list[str]) -> None:
    (sentence,) = warnings(only(place, margin), SPARSITY).values()
    for word in words:
        assert word in sentence


def test_targets_beyond_the_limits_are_no_collapse() -> None:
    keeps_all = only("output", drawn() + 15.0)
    assert warnings(keeps_all, SparsityConfig(output_keep_rate=1.0)) == {}
