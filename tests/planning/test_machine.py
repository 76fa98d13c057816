"""Machines by the names that people use."""

import pytest

from dynllava_jax.errors import InputError
from dynllava_jax.planning.machine import machine


@pytest.mark.parametrize(
    ("name", "topology", "devices", "hosts"),
    [
        ("v5e:8x8", "v5e:8x8", 64, 16),
        ("v5litepod-64", "v5e:8x8", 64, 16),
        ("v5e-256", "v5e:16x16", 256, 64),
        ("v5p-32", "v5p:2x2x4", 16, 4),
        ("v5p-128", "v5p:4x4x4", 64, 16),
        ("v6e-64", "v6e:8x8", 64, 16),
        ("v4-8", "v4:2x2x1", 8, 1),
        ("a100:1x8", "a100:1x8", 8, 1),
        ("A100-80:1x8", "a100:1x8", 8, 1),
        ("a100-40:2x8", "a100-40:2x8", 16, 2),
        ("h200:4x8", "h200:4x8", 32, 4),
        ("h100-32", "h100:4x8", 32, 4),
        ("h100-4", "h100:1x4", 4, 1),
    ],
)
def test_a_name_is_understood(name: str, topology: str, devices: int, hosts: int) -> None:
    found = machine(name)
    assert (found.topology, found.devices, found.hosts) == (topology, devices, hosts)
    assert found.limit == int(0.92 * found.chip.memory)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a10:1x8", "the nearest are a100"),
        ("v5x:8x8", "the nearest are .*v5"),
        ("v5litepod-48", "the nearest are v5e-32, v5e-64"),
        ("v5p-30", r"the nearest are v5p-32.*shape in chips \(v5p:2x2x4\)"),
        ("h100-12", "write h100:HOSTSxGPUS"),
        ("v5p:8x8", "needs a shape of 3 sizes, such as v5p:2x2x1"),
        ("a100", "needs a shape of 2 sizes, such as a100:1x8"),
        ("v5e:0x8", "needs a shape"),
    ],
)
def test_another_name_lists_the_nearest(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        machine(name)
