"""A loss that is no number, or explodes, is a problem; a noisy one is not."""

import math

import numpy as np
import pytest

from dynllava_jax.training.watch import LossWatch, gradient_problem, stopped


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


def test_a_batch_that_teaches_nothing_has_no_part_in_the_mean() -> None:
    watch = LossWatch(5.0)
    for _ in range(30):
        assert watch.problem(0.0) is None
    for _ in range(20):
        assert watch.problem(2.0) is None
    for _ in range(100):
        assert watch.problem(0.0) is None
    assert watch.problem(9.9) is None


def test_a_gradient_that_is_no_number_is_named_by_its_part() -> None:
    fine = {"loss": 1.0, "grad_norm": 2.0, "grad_norm/decoder": 2.0, "grad_norm/projector": 0.0, "tau": math.nan}
    assert gradient_problem(fine) is None
    bad = fine | {"grad_norm": math.nan, "grad_norm/projector": math.nan}
    assert gradient_problem(bad) == "the gradient of projector is nan"
    assert gradient_problem(fine | {"grad_norm": math.inf}) == "the gradient of all parts together is inf"


def test_the_end_names_step_samples_and_the_last_good_checkpoint() -> None:
    text = str(stopped(7, "the loss is nan", ("a", "b"), 5))
    assert text == (
        "Stopped at step 7: the loss is nan; its samples are a, b; start again, and if it comes again, look at these "
        "samples or lower optimizer.learning_rate; the last checkpoint is that of step 5."
    )
    assert "there is no checkpoint yet" in str(stopped(7, "the loss is nan", ("a",), None))
