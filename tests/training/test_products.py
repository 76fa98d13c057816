"""How often a training step on a GPU multiplies: compiled ahead of time, never run."""

import dataclasses
import importlib.util
import re
from typing import Any

import pytest

from dynllava_jax.analysis import aot
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.sharding.xla_options import xla_options
from dynllava_jax.testing import tiny_config
from dynllava_jax.training import ahead
from tests.training.batches import settings

pytestmark = [
    pytest.mark.aot,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs the aot extra"),
]


def test_with_products_kept_each_is_made_once_however_short_memory_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seven products of a layer forward, two for each of them backward, in both stacks."""

    def short_of_memory(device: Any, dtype: str, **of_program: bool) -> dict[str, Any]:
        """XLA may use a hundredth of what it would: as little for this model as all of it is for a large one."""
        return {**(xla_options(device, dtype, **of_program) or {}), "xla_gpu_memory_limit_slop_factor": 1}

    monkeypatch.setattr(ahead, "xla_options", short_of_memory)
    config = settings(remat="dots", attention="triton", dtype="bfloat16", global_batch_size=8)
    mesh = make_mesh("data=1", aot.topology("h100:1x1"))
    compiled = ahead.compile_step(_wide(), config, mesh, length=1024)
    assert _products_by_stack(compiled.as_text() or "") == [7, 7, 14, 14]


def _wide() -> ModelConfig:
    """The tiny model with products that XLA treats as it treats large ones."""
    model = tiny_config()
    sizes = {"hidden_size": 1024, "intermediate_size": 2816, "num_heads": 8, "num_kv_heads": 8, "head_dim": 128}
    decoder = dataclasses.replace(model.decoder, max_positions=1024, **sizes)
    return dataclasses.replace(model, decoder=decoder)


def _products_by_stack(program: str) -> list[int]:
    """Calls of cuBLAS in each loop with an attention kernel in it."""
    bodies: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in program.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{", line):
            lines = bodies.setdefault(head[1], [])
        else:
            lines.append(line)

    def products(name: str) -> int:
        found = 0
        for line in bodies[name]:
            found += bool(re.search(r'custom_call_target="__cublas', line))
            found += sum(map(products, re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", line)))
        return found

    loops = re.findall(r" while\(.*body=%?([\w.\-]+)", program)
    return sorted(products(name) for name in loops if any("policy_attention" in line for line in bodies[name]))
