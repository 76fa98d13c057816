"""The paper's recipe fits the machine that it was made on: compiled ahead of time, never run."""

import importlib.util

import pytest

from dynllava_jax.analysis import aot
from dynllava_jax.config.presets import get_preset
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.training.ahead import compile_step

pytestmark = [
    pytest.mark.aot,
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("jax_cuda13_plugin") is None, reason="needs the aot extra"),
]


@pytest.mark.parametrize("model", ["dynamic_llava_7b", "dynamic_llava_13b"])
def test_eight_samples_a_device_fit_eight_a100_without_accumulation(model: str):
    config = TrainConfig(model=model)
    mesh = make_mesh("fsdp=8", aot.topology("a100:1x8"))
    assert config.global_batch_size == 64
    assert config.device_batch_size is None
    needed = aot.memory(compile_step(get_preset(model), config, mesh, length=2048))
    assert needed.total < 0.92 * 80 * 10**9
