"""With more simulated devices than cores XLA's pool is larger than the cores; whoever names its size is heard."""

import os

import pytest

from dynllava_jax.cli import cpu_threads
from dynllava_jax.cli.main import main

FLAG = "--xla_force_host_platform_device_count"


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"JAX_NUM_CPU_DEVICES": "8"}, "32"),
        ({"XLA_FLAGS": f"--xla_dump_to= {FLAG}=8"}, "32"),
        ({"XLA_FLAGS": f"{FLAG}=2"}, "16"),
        ({"JAX_NUM_CPU_DEVICES": "8", "NPROC": "5"}, "5"),
        ({"JAX_NUM_CPU_DEVICES": "1"}, None),
        ({"JAX_NUM_CPU_DEVICES": "-1", "XLA_FLAGS": ""}, None),
        ({}, None),
    ],
)
def test_threads_of_a_command(
    environment: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu_threads.os, "cpu_count", lambda: 16)
    for name in ("JAX_NUM_CPU_DEVICES", "XLA_FLAGS", "NPROC"):
        monkeypatch.setenv(name, "")  # so that what the command sets is taken back
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["samples"]) == 0
    assert os.environ.get("NPROC") == expected
