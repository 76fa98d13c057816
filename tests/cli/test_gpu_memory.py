"""What `dynllava plan` says fits is what a command may take; whoever names a share is heard."""

import os

import pytest

from dynllava_jax.cli.gpu_memory import take_gpu_memory

NAMES = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({}, ("0.92", None)),
        ({NAMES[0]: ""}, ("0.92", None)),
        ({NAMES[0]: "0.5"}, ("0.5", None)),
        ({NAMES[1]: "0.4"}, (None, "0.4")),
    ],
)
def test_the_share_is_set_where_none_is_named(
    named: dict[str, str], expected: tuple[str | None, str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, named.get(name, ""))
        if name not in named:
            monkeypatch.delenv(name)
    take_gpu_memory()
    assert tuple(os.environ.get(name) for name in NAMES) == expected


def test_jax_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from jaxlib.xla_client import generate_pjrt_gpu_plugin_options

    for name in NAMES:
        monkeypatch.setenv(name, "")
    take_gpu_memory()
    assert generate_pjrt_gpu_plugin_options()["memory_fraction"] == 0.92
