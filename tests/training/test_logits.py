"""Vocabulary logits of a whole batch never exist, whatever the compiler makes of the program."""

import math
from collections.abc import Iterator

import jax
import pytest
from jax.extend.core import Jaxpr, jaxprs_in_params

from dynllava_jax.config.training import InitConfig, LossConfig, TrainConfig
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.testing import tiny_config
from dynllava_jax.training.ahead import arguments
from dynllava_jax.training.step import Trainer

ROWS, LENGTH = 4, 96


def shapes(jaxpr: Jaxpr) -> Iterator[tuple[int, ...]]:
    """Of every value that a program computes, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (tuple(getattr(var.aval, "shape", ())) for var in equation.outvars)
        for inner in jaxprs_in_params(equation.params):
            yield from shapes(inner)


@pytest.mark.parametrize(("chunk", "exist"), [(16, False), (LENGTH, True)])
def test_logits_exist_for_a_chunk_of_tokens_only(chunk: int, exist: bool) -> None:
    model = tiny_config()
    config = TrainConfig(
        model="tiny", init=InitConfig(tokenizer="unused"), global_batch_size=ROWS, loss=LossConfig(chunk=chunk)
    )
    trainer = Trainer(model, config, make_mesh("data=1", jax.devices()[:1]), total=10)
    jaxpr = jax.make_jaxpr(trainer.step_body)(*arguments(trainer, LENGTH)).jaxpr
    vocab = model.decoder.vocab_size
    whole = [shape for shape in shapes(jaxpr) if vocab in shape and math.prod(shape) >= ROWS * (LENGTH - 1) * vocab]
    assert bool(whole) == exist, whole
