"""FLOPs by both conventions are those of `dynllava flops`."""

import dataclasses
import json
from typing import Any

import pytest

from dynllava_jax.analysis.prompt_flops import beside_the_decoder
from dynllava_jax.cli.main import main
from dynllava_jax.config.presets import get_preset
from dynllava_jax.config.training import OptimizerConfig
from dynllava_jax.inference.buckets import Shape
from dynllava_jax.planning.operations import prefill_operations, step_operations, token_operations
from dynllava_jax.planning.table import lines

TEXT = 192


def count(capsys: pytest.CaptureFixture[str], size: str, *more: str) -> dict[str, Any]:
    """What `dynllava flops` says of a prompt with one picture."""
    assert main(["flops", f"--preset=dynamic_llava_{size}", f"--text-tokens={TEXT}", *more, "--json"]) == 0
    return json.loads(capsys.readouterr().out)["flops"]


def shape(size: str, kind: str, answer: int = 100) -> tuple[Any, Shape]:
    model = get_preset(f"dynamic_llava_{size}")
    if kind == "dense":
        model = dataclasses.replace(model, sparsity=model.sparsity.dense())
    return model, Shape(3, 1, model.image_tokens + TEXT, model.kept_image_tokens + TEXT, answer)


@pytest.mark.parametrize("size", ["7b", "13b"])
@pytest.mark.parametrize("kind", ["dense", "dynamic"])
def test_a_prefill_is_that_of_dynllava_flops(size: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    counted = count(capsys, size)
    beside = dict(counted["beside_the_decoder"])
    if kind == "dense":
        del beside["image_predictor"]
    found = prefill_operations(*shape(size, kind))
    assert found.eq13 == pytest.approx(3 * counted["prompt"]["eq13"][kind], rel=1e-12)
    assert found.exact == pytest.approx(3 * (counted["prompt"]["exact"][kind] + sum(beside.values())), rel=1e-12)


def test_an_instruct_predictor_judges_the_whole_prompt() -> None:
    model, batch = shape("7b", "dynamic")
    judging = dataclasses.replace(model, sparsity=dataclasses.replace(model.sparsity, instruct_selector="learned"))
    each = 2 * (model.decoder.hidden_size * 512 + 512 * 256 + 256 * 128 + 128 * 2)
    more = prefill_operations(judging, batch).exact - prefill_operations(model, batch).exact
    assert more == pytest.approx(3 * (576 + TEXT) * each, rel=1e-6)
    beside = beside_the_decoder(judging, 1, 576 + TEXT)
    assert beside["instruct_predictor"].forward == (576 + TEXT) * each
    assert "instruct_predictor" not in beside_the_decoder(model, 1, 576 + TEXT)


@pytest.mark.parametrize("kind", ["dense", "dynamic"])
def test_a_token_is_the_last_of_dynllava_flops(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    until = [count(capsys, "7b", f"--new-tokens={new}")["generation_with_cache"][kind] for new in (99, 100)]
    model, batch = shape("7b", kind)
    width, vocab = model.decoder.hidden_size, model.decoder.vocab_size
    predictor = 2 * (width * 512 + 512 * 256 + 256 * 128 + 128 * 2) if kind == "dynamic" else 0
    found = token_operations(model, batch)
    assert found.exact == pytest.approx(3 * (until[1] - until[0] + 2 * width * vocab + predictor), rel=1e-9)
    kept = 0.5 if kind == "dynamic" else 1.0
    seen = 2 * (batch.length + 99) + 30 * (batch.deep_length + kept * 99)
    assert found.eq13 == pytest.approx(3 * (32 * 32 * width**2 + 4 * width * seen), rel=1e-12)
    # An answer of one token feeds none; what is planned is then the first step there could be.
    one, two = (token_operations(model, dataclasses.replace(batch, answer=answer)) for answer in (1, 2))
    assert one == two


def test_a_step_is_three_forward_passes_by_equation_13(capsys: pytest.CaptureFixture[str]) -> None:
    """Of all tokens, so that it is the dense prompt of `dynllava flops`."""
    counted = count(capsys, "7b")["prompt"]
    model, length = get_preset("dynamic_llava_7b"), 576 + TEXT
    found = step_operations(model, OptimizerConfig(), rows=64, length=length, images=1)
    assert found.eq13 == pytest.approx(3 * 64 * counted["eq13"]["dense"], rel=1e-12)
    assert 1 < found.exact / (3 * 64 * counted["exact"]["dense"]) < 1.1  # the head, and what is not trained


def test_the_table_names_both() -> None:
    report = {"program": "step", "topology": "a100:1x8", "mesh": {"fsdp": 8}, "fits": True}
    printed = "\n".join(lines(report | {"flops_by_convention": {"exact": 5.65e15, "eq13": 7.18e15}}))
    assert "5650 TFLOP exact (every matrix product), 7180 TFLOP by the paper's eq. 13" in printed
    assert "taken three times for a step" in printed
