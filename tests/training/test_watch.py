"""A loss that is no number, or explodes, is a problem; a noisy one is not."""

import math

import numpy as np
import pytest

from dynllava_jax.training.watch import LossWatch, stopped


def test_noise_and_a_falling_loss_are_fine() -> None:
    watch = LossWatch(20.0)
    draw = np.random.default_rng(0)
    for step in range(300):
        assert watch.problem(float(8.0 * math.exp(-step / 100) * draw.uniform(0.5, 3.0))) is None


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_no_number_is_a_problem_at_once(loss: float) -> None:
    assert LossWatch(20.0).problem(loss) == f"the loss is {loss}"


def test_an_explosion_is_a_problem_once_there_is_a_mean() -> None:
    watch = LossWatch(5.0)
    assert watch.problem(1000.0) is None
    watch = LossWatch(5.0)
    for _ in range(20):
        assert watch.problem(2.0) is None
    assert watch.problem(9.9) is None
    problem = watch.problem(50.0)
    assert problem is not None
    assert "the loss is 50, 21 times its running mean of 2.376" in problem


def test_the_end_names_step_samples_and_the_last_good_checkpoint() -> None:
    text = str(stopped(7, "the loss is nan", ("a", "b"), 5))
    assert text == "Stopped at step 7: the loss is nan; its samples are a, b; the last checkpoint is that of step 5."
    assert "there is no checkpoint yet" in str(stopped(7, "the loss is nan", ("a",), None))
