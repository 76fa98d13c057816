"""Machines by the names that people use."""

import importlib.util
import math
from pathlib import Path

import jax
import pytest

from dynllava_jax.config.experiment import read_experiment
from dynllava_jax.errors import InputError
from dynllava_jax.planning.machine import machine
from dynllava_jax.planning.request import Request, answer
from dynllava_jax.sharding.mesh import AXES, make_mesh

CONFIGS = sorted(Path("configs").glob("*.py"))
GIVEN = ("--config.data.source=unread", "--config.init.checkpoint=unread")


@pytest.mark.parametrize(
    ("name", "topology", "devices", "hosts"),
    [
        ("v5e:8x8", "v5e:8x8", 64, 16),
        ("v5litepod-64", "v5e:8x8", 64, 16),
        ("v5e-256", "v5e:16x16", 256, 64),
        ("v5p-32", "v5p:2x2x4", 16, 4),
        ("v5p-128", "v5p:4x4x4", 64, 16),
        ("v6e-64", "v6e:8x8", 64, 16),
        ("v4-8", "v4:2x2x1", 4, 1),
        ("v5litepod-8", "v5e:2x4", 8, 1),  # a host of eight; larger slices have hosts of four
        ("v6e-8", "v6e:2x4", 8, 1),
        ("v6e-4", "v6e:2x2", 4, 1),
        ("v5p-16", "v5p:2x2x2", 8, 2),
        ("v4-8192", "v4:16x16x16", 4096, 1024),
        ("v5p-3072", "v5p:8x12x16", 1536, 384),
        ("v5p-12288", "v5p:16x16x24", 6144, 1536),
        ("v4:4x4x12", "v4:4x4x12", 192, 48),
        ("v5p:16x16x24", "v5p:16x16x24", 6144, 1536),
        ("a100:1x8", "a100:1x8", 8, 1),
        ("A100-80:1x8", "a100:1x8", 8, 1),
        ("a100-80-16", "a100:2x8", 16, 2),
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
        ("a100-80", "needs a shape of 2 sizes, such as a100:1x8"),  # these are GB, not GPUs
        ("a100-40", "needs a shape of 2 sizes, such as a100-40:1x8"),
        ("H100-80GB", "needs a shape of 2 sizes, such as h100:1x8"),
        ("v5p-16384", "the nearest are v5p-12288, "),
        ("v5e:0x8", "needs a shape"),
        ("v5e:7x9", "'v5e:7x9' is no slice that is sold; the nearest are v5e:8x8, v5e:4x8, v5e:8x16.$"),
        ("v6e:8x4", "the nearest are v6e:4x8, "),
        ("v6e:100x100", "the nearest are v6e:16x16, v6e:8x16, v6e:8x8.$"),
        ("v5p:3x3x3", "the nearest are v5p:2x4x4, v5p:2x2x4, v5p:4x4x4.$"),
        ("v4:12x4x4", "the nearest are v4:4x4x12, v4:4x8x8, "),
        ("v5p:16x24x24", "the nearest are v5p:16x16x24, "),
    ],
)
def test_another_name_lists_the_nearest(name: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        machine(name)


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.stem)
def test_one_config_serves_every_machine(file: Path) -> None:
    """The axis of -1 takes what devices there are, and the batch divides over those of the machines in docs/plan.md."""
    config = read_experiment(str(file), GIVEN)
    for count in (1, 2, 4, 8):
        mesh = make_mesh(config.mesh, jax.devices()[:count])
        assert math.prod(mesh.shape[axis] for axis in AXES) == count
    if file.stem != "tiny":
        for name in ("a100:1x8", "h100:4x8", "v5e-64", "v5p-32", "v6e-64", "v5p-128"):
            assert config.global_batch_size % machine(name).devices == 0


@pytest.mark.parametrize(("name", "package"), [("v5e:2x2", "libtpu"), ("h200:1x8", "jax_cuda13_plugin")])
def test_without_the_compilers_a_line_says_what_to_install(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    request = Request(read_experiment("configs/tiny.py", GIVEN), name)
    with pytest.raises(InputError, match=rf"needs {package}; run: pip install 'dynllava_jax\[aot\]'$"):
        list(answer(request, lambda line: None))
