"""The recording of decoding with a cache, reproduced by the kernels that TPUs and GPUs run."""

import logging

import pytest

from dynllava_jax.cli.main import main
from dynllava_jax.kernels import api
from tests.golden_files import ROOT


@pytest.mark.slow
@pytest.mark.parametrize("kernel", ["triton-interpret", "tpu-interpret"])
def test_decoding(kernel: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(api._BEST, "cpu", (kernel, "xla"))
    api._say_once.cache_clear()
    # The command sets the package's level; this logger's own one stays.
    with caplog.at_level(logging.INFO, api.__name__):
        assert main(["verify", "--cases", str(ROOT), "--case", "06_decode_kv"]) == 0
    assert f"cached_attention runs as {kernel}" in caplog.messages
