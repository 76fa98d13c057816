"""What is said of given seconds: shares of the machine, the roofline of a token, ratios; counted by hand for `tiny`."""

import dataclasses
import weakref

import jax
import numpy as np
import pytest

from dynllava_jax.analysis.flops import training_flops
from dynllava_jax.benchmark.generation import exact_buckets
from dynllava_jax.benchmark.parts import decode_weights
from dynllava_jax.benchmark.roofline import Answers, Parts, cache_read, dynamic_to_dense, generation_numbers
from dynllava_jax.benchmark.shapes import GenerationShape
from dynllava_jax.benchmark.step import StepShape, step_numbers
from dynllava_jax.benchmark.timing import Machine, measure
from dynllava_jax.checkpoint.leaves import abstract_model
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.inference.buckets import Buckets
from dynllava_jax.inference.engine import Engine
from dynllava_jax.testing import tiny_config

CONFIG = tiny_config()
DENSE = dataclasses.replace(CONFIG, sparsity=CONFIG.sparsity.dense())
MACHINE = Machine("NVIDIA H200", "gpu", flops=1e9, bandwidth=1e6)
SHAPE = GenerationShape(batch=2, text=10, images=1, new=5)
# 16 of the prompt's 26 tokens are image tokens, 6 of them are kept; the deep stack keeps 3 of the first answer's.
DYNAMIC = Answers(True, 0.5, 2.0, 6, (16, 16), ((1, 0, 1, 1), (0, 0, 0, 0)))
WHOLE = Answers(True, 0.5, 2.5, 16, (26, 26), ((1, 1, 1, 1), (1, 1, 1, 1)))


def layer(tokens: int) -> int:
    """FLOPs of one of the four layers: width 64, two of four heads shared by two, an MLP of 128."""
    return 2 * tokens * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 128) + 4 * tokens**2 * 64


def numbers(config: ModelConfig, done: Answers, prefill: float) -> dict:
    return generation_numbers(config, SHAPE, done, Parts(0.25, prefill), MACHINE, weights=1000, itemsize=4)


def test_prefill_is_related_to_the_matrix_product() -> None:
    ours, dense = numbers(CONFIG, DYNAMIC, 0.3), numbers(DENSE, WHOLE, 0.4)
    assert ours["prefill_flops"] == 2 * (2 * layer(26) + 2 * layer(16))
    assert dense["prefill_flops"] == 2 * 4 * layer(26)
    assert ours["prefill_tflops"] == pytest.approx(ours["prefill_flops"] / 0.3 / 1e12)
    assert dense["prefill_share_of_matmul"] == pytest.approx(dense["prefill_flops"] / 0.4 / 1e9)
    assert ours["tower_seconds"] == 0.25
    assert ours["tower_share_of_matmul"] > 0
    assert ours["first_token_seconds"] == 0.5


def test_a_token_is_related_to_what_it_has_to_read() -> None:
    token = 2 * 2 * 16 * 4  # bytes of the keys and values of one token in one layer: two heads of 16 numbers
    shallow = 2 * (26 + 27 + 28 + 29) / 4
    deep = (16 + 17 + 17 + 18 + 4 * 16) / 4
    held = token * (2 * shallow + 2 * deep)
    assert cache_read(CONFIG, SHAPE, DYNAMIC, 4) == held
    ours = numbers(CONFIG, DYNAMIC, 0.3)
    assert ours["ms_per_token"] == pytest.approx(500.0)
    assert ours["least_ms_per_token"] == pytest.approx(1e3 * (1000 + held) / 1e6)
    assert ours["share_of_roofline"] == pytest.approx((1000 + held) / 1e6 / 0.5)
    assert ours["tokens_per_second"] == pytest.approx(4.0)
    assert ours["kept_output_share"] == pytest.approx(3 / 8)
    assert cache_read(DENSE, SHAPE, WHOLE, 4) == token * 4 * shallow


def test_without_a_cache_a_token_is_related_to_its_arithmetic() -> None:
    done = dataclasses.replace(WHOLE, cached=False)
    record = numbers(DENSE, done, 0.4)
    assert record["prefill_flops"] == 2 * 4 * layer(26 + 5)  # the slots that the pass has
    least = 2 * 4 * sum(layer(26 + fed) for fed in range(1, 5)) / 4 / 1e9
    assert record["least_ms_per_token"] == pytest.approx(1e3 * least)
    assert record["share_of_roofline"] == pytest.approx(least / (2.5 / 4))


def test_dynamic_is_related_to_dense() -> None:
    record = dynamic_to_dense(numbers(CONFIG, DYNAMIC, 0.3), numbers(DENSE, WHOLE, 0.4))
    flops = (2 * layer(26) + 2 * layer(16)) / (4 * layer(26))
    assert record["prefill_time_ratio"] == pytest.approx(0.75)
    assert record["prefill_flops_ratio"] == pytest.approx(flops)
    assert record["prefill_time_over_flops"] == pytest.approx(0.75 / flops)
    assert record["token_time_ratio"] == pytest.approx(0.8)


def test_decoding_reads_the_decoder_and_the_predictor_it_asks() -> None:
    engine = Engine(abstract_model(CONFIG), buckets=Buckets(), dtype="float32")
    decoder = engine.model.decoder
    layers = 4 * sum(x.size for x in jax.tree.leaves((decoder.shallow, decoder.deep, decoder.final_norm)))
    head, judge = 512 * 64, sum(x.size for x in jax.tree.leaves(engine.model.output_predictor))
    assert decode_weights(engine, CONFIG.sparsity.dense()) == layers + 4 * head
    assert decode_weights(engine, CONFIG.sparsity) == layers + 4 * (head + judge)


@pytest.mark.parametrize(("cached", "whole", "deep"), [(True, 26, 16), (False, 31, 21)])
def test_no_slot_is_padded(cached: bool, whole: int, deep: int) -> None:
    buckets = exact_buckets(CONFIG, SHAPE, cached).within(512)
    ours, dense = (buckets.shape(config, [whole] * 2, [1, 1], 5) for config in (CONFIG, DENSE))
    assert (ours.rows, ours.length, ours.deep_length, ours.answer) == (2, whole, deep, 5)
    assert (dense.length, dense.deep_length) == (whole, whole)


def test_a_step_is_related_to_both_peaks() -> None:
    config, shape = TrainConfig(model="tiny", global_batch_size=4), StepShape(48, 1)
    record = step_numbers(CONFIG, config, shape, 2.0, 8, dataclasses.replace(MACHINE, flops=1e12))
    flops = training_flops(CONFIG, config.optimizer, rows=4, length=48, slots=1)
    assert record["tflops_per_device"] == pytest.approx(flops / 2.0 / 8 / 1e12)
    assert record["mfu"] == pytest.approx(flops / 2.0 / 8 / 989e12)
    assert record["share_of_matmul"] == pytest.approx(flops / 2.0 / 8 / 1e12)
    assert record["tokens_per_second"] == pytest.approx(4 * 48 / 2.0)
    unknown = step_numbers(CONFIG, config, shape, 2.0, 8, dataclasses.replace(MACHINE, kind="cpu"))
    assert unknown["mfu"] is None
    assert unknown["data_sheet_tflops"] is None


def test_results_of_a_round_are_not_kept() -> None:
    alive: list[weakref.ref] = []
    most = 0

    def function() -> np.ndarray:
        nonlocal most
        made = np.zeros(8)
        alive.append(weakref.ref(made))
        most = max(most, sum(ref() is not None for ref in alive))
        return made

    measure(function, least=0.02)  # many calls, even where the one that they are reckoned from took a millisecond
    assert len(alive) > 10
    assert most <= 2
