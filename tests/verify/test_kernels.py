"""The official numbers of attention under a policy hold for every implementation, run by the interpreter."""

import dataclasses
import functools
import logging

import pytest

from dynllava_jax.kernels import api
from dynllava_jax.verify import attention
from dynllava_jax.verify.compare import compare
from dynllava_jax.verify.subject import Subject


@pytest.mark.parametrize("name", ["chunked", "triton-interpret", "tpu-interpret"])
def test_causal_and_padded_variants(
    name: str, subject: Subject, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    case = subject.recording.case("03_masked_softmax")
    causal = {array: value for array, value in case.outputs.items() if not array.startswith("nomask")}
    case = dataclasses.replace(case, outputs=causal)
    for op in ("attention", "policy_attention"):
        monkeypatch.setattr(api, op, functools.partial(getattr(api, op), implementation=name))
    api._say_once.cache_clear()
    with caplog.at_level(logging.INFO, logger=api.__name__):
        found = attention.policy_attention(subject, case)
    assert set(caplog.messages) == {f"attention runs as {name}", f"policy_attention runs as {name}"}
    report = compare(case, found, "cpu")
    assert len(report.arrays) > 25
    assert {array: row for array, row in report.arrays.items() if not row.ok} == {}
