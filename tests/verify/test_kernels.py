"""The recordings of attention under a policy and of decoding with a cache, by the kernels that TPUs and GPUs run."""

import dataclasses
import logging

import pytest

from dynllava_jax.cli.main import main
from dynllava_jax.kernels import api
from dynllava_jax.verify import attention
from dynllava_jax.verify.compare import compare
from dynllava_jax.verify.subject import Subject
from tests.golden_files import ROOT


@pytest.mark.parametrize("name", ["chunked", "triton-interpret", "tpu-interpret"])
def test_causal_and_padded_variants(
    name: str, subject: Subject, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    case = subject.recording.case("03_masked_softmax")
    causal = {array: value for array, value in case.outputs.items() if not array.startswith("nomask")}
    case = dataclasses.replace(case, outputs=causal)
    monkeypatch.setitem(api._BEST, "cpu", (name,))
    api._say_once.cache_clear()
    with caplog.at_level(logging.INFO, logger=api.__name__):
        found = attention.policy_attention(subject, case)
    assert set(caplog.messages) == {f"attention runs as {name}", f"policy_attention runs as {name}"}
    report = compare(case, found, "cpu")
    assert len(report.arrays) > 25
    assert {array: row for array, row in report.arrays.items() if not row.ok} == {}


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["triton-interpret", "tpu-interpret"])
def test_decoding(kernel: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(api._BEST, "cpu", (kernel, "xla"))
    api._say_once.cache_clear()
    # The command sets the package's level; this logger's own one stays.
    with caplog.at_level(logging.INFO, api.__name__):
        assert main(["verify", "--cases", str(ROOT), "--case", "06_decode_kv"]) == 0
    assert f"cached_attention runs as {kernel}" in caplog.messages
