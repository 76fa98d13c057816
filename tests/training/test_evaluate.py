"""Numbers over several batches count every token once."""

import math

import jax.numpy as jnp
import pytest

from dynllava_jax.data.batch import Batch
from dynllava_jax.training.evaluate import evaluate

BATCH = Batch(
    jnp.zeros((1, 1), int), jnp.zeros((1, 1), int), jnp.zeros((1, 1), int), jnp.zeros(1, int), jnp.zeros(1, int)
)


def look(sums: list[dict[str, float]]) -> dict[str, float]:
    rest = iter(sums)
    return evaluate(lambda batch: {name: jnp.asarray(value) for name, value in next(rest).items()}, [BATCH] * len(sums))


def test_means_are_over_tokens_not_over_batches() -> None:
    found = look(
        [
            {"ce": 6.0, "tokens": 3.0, "image_kept": 5.0, "image_judged": 10.0, "loss": 9.0},
            {"ce": 2.0, "tokens": 1.0, "image_kept": 0.0, "image_judged": 30.0, "loss": 9.0},
        ]
    )
    assert found == pytest.approx(
        {"eval/loss": 2.0, "eval/perplexity": math.exp(2.0), "eval/image_keep_rate": 0.125}, rel=1e-6
    )


def test_where_nothing_was_judged_there_is_no_rate() -> None:
    sums = {"ce": 1.0, "tokens": 1.0, "output_kept": 0.0, "output_judged": 0.0}
    assert "eval/output_keep_rate" not in look([sums, sums])
    assert look([sums, sums | {"output_kept": 1.0, "output_judged": 4.0}])["eval/output_keep_rate"] == 0.25


def test_nothing_supervised_and_enormous_losses_are_finite() -> None:
    assert look([{"ce": 0.0, "tokens": 0.0}])["eval/perplexity"] == 1.0
    assert math.isfinite(look([{"ce": 1e6, "tokens": 1.0}])["eval/perplexity"])
