"""The recordings hold whatever computes attention: in chunks, or by the kernels that TPUs and GPUs run."""

import dataclasses
import logging
from collections.abc import Iterator

import pytest

from dynllava_jax.cli.main import main
from dynllava_jax.kernels import api, tuning
from dynllava_jax.verify import attention
from dynllava_jax.verify.compare import compare
from dynllava_jax.verify.runner import SUPPORTED
from dynllava_jax.verify.subject import Subject
from tests.golden_files import ROOT

IN_USE = {
    "04_dense": {"attention", "cached_attention"},
    "05_prefill_kv": {"attention"},
    "06_decode_kv": {"attention", "cached_attention"},
    "07_decode_nocache": {"attention", "cached_attention"},
    "08_instruct_prefill": {"attention"},
    "08b_instruct_prefill_multiround": {"attention"},
    "09_multi_turn_kv": {"attention", "cached_attention"},
    "09b_multi_turn_kv_no_instruct": {"attention", "cached_attention"},
    "10_train": {"attention", "policy_attention"},
    "10b_train_instruct": {"attention", "policy_attention"},
    "14_train_trajectory": {"attention", "policy_attention"},
}
"""Cases that attend, and how."""

SEVERAL = "cached_attention runs as xla (not {}: it serves one new token, not"
"""What the door says of an instruction that is put on top of a cache."""


KERNELS = ("chunked", "triton-interpret", "tpu-interpret")


@pytest.fixture(scope="module", params=KERNELS)
def by_kernel(request: pytest.FixtureRequest, subject: Subject) -> Iterator[Subject]:
    """The same weights under another implementation, with a prompt in several chunks."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tuning, "CHUNK", 8)
        yield Subject(subject.recording, subject.model, request.param)


@pytest.mark.slow
def test_causal_and_padded_variants(by_kernel: Subject, caplog: pytest.LogCaptureFixture) -> None:
    case = by_kernel.recording.case("03_masked_softmax")
    causal = {array: value for array, value in case.outputs.items() if not array.startswith("nomask")}
    case = dataclasses.replace(case, outputs=causal)
    api._say_once.cache_clear()
    with caplog.at_level(logging.INFO, logger=api.__name__):
        found = attention.policy_attention(by_kernel, case)
    assert set(caplog.messages) == {f"{op} runs as {by_kernel.attention}" for op in ("attention", "policy_attention")}
    report = compare(case, found, "cpu")
    assert len(report.arrays) > 25
    assert {array: row for array, row in report.arrays.items() if not row.ok} == {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("by_kernel", "name"),
    [(kernel, name) for kernel in KERNELS for name in IN_USE],
    indirect=["by_kernel"],
)
def test_generation_and_training(by_kernel: Subject, name: str, caplog: pytest.LogCaptureFixture) -> None:
    case = by_kernel.recording.case(name)
    api._say_once.cache_clear()
    with caplog.at_level(logging.INFO, logger=api.__name__):
        report = compare(case, SUPPORTED[name](by_kernel, case), "cpu")
    told = {message for message in caplog.messages if not message.startswith(SEVERAL.format(by_kernel.attention))}
    ran = {op: f"{op} runs as {by_kernel.attention}" for op in IN_USE[name]}
    # Each case has a prompt of its own; the program that another one had traced for its answer says nothing again.
    assert {ran["attention"]} <= told <= set(ran.values())
    assert {array: row for array, row in report.arrays.items() if not row.ok} == {}


def test_the_command_takes_a_name(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    words = ["verify", "--cases", str(ROOT), "--case", "05_prefill_kv", "--attention"]
    api._say_once.cache_clear()
    # The command sets the package's level; this logger's own one stays.
    with caplog.at_level(logging.INFO, api.__name__):
        assert main([*words, "chunked"]) == 0
    assert caplog.messages == ["attention runs as chunked"]
    assert main([*words, "cuda"]) == 2
    assert "attention has no implementation 'cuda'; there are xla, chunked," in capsys.readouterr().err
