"""Training by the kernels that TPUs and GPUs run, through the interpreter, and what a backward pass finds of theirs."""

import importlib.util
import logging
import re
from collections import Counter

import numpy as np
import pytest

from dynllava_jax.analysis.aot import topology
from dynllava_jax.kernels import api, tuning
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.testing import tiny_config
from dynllava_jax.training import ahead
from tests.training.batches import settings
from tests.training.steps import run

STEPS = 3


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mesh"),
    [
        ("chunked", "data=1"),
        ("triton-interpret", "data=1"),
        ("tpu-interpret", "data=1"),
        ("triton-interpret", "fsdp=4,tensor=2"),
        ("tpu-interpret", "data=2,fsdp=4"),
    ],
)
def test_steps_equal_those_by_xla(
    name: str, mesh: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a mesh, each device runs the kernel on its own samples and heads."""
    monkeypatch.setattr(tuning, "CHUNK", 16)
    api._say_once.cache_clear()
    with caplog.at_level(logging.INFO, api.__name__):
        found = run(settings(attention=name, mesh=mesh), STEPS)
    assert set(caplog.messages) == {f"{op} runs as {name}" for op in ("attention", "policy_attention")}
    wanted = run(settings(), STEPS)
    for mine, theirs in zip(found.rows, wanted.rows, strict=True):
        for metric, value in theirs.items():
            near = 1e-2 if metric.startswith("grad_norm") else 1e-4  # see `test_step`
            assert mine[metric] == pytest.approx(value, rel=near, abs=1e-6), metric
    for path, value in wanted.params.items():
        np.testing.assert_allclose(found.params[path], value, atol=1e-4, err_msg=path)
    # Flat attention: no dropped key holds a row's maximum.
    found, wanted = (run(config, 1, False) for config in (settings(attention=name, mesh=mesh), settings()))
    for path, value in wanted.gradient.items():
        np.testing.assert_allclose(found.gradient[path], value, atol=1e-5 * np.abs(value).max(), err_msg=path)


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the aot extra is not installed")
@pytest.mark.parametrize(("remat", "again"), [("full", 2), ("dots", 0)])
def test_the_forward_kernel_runs_again_only_where_nothing_of_it_is_kept(remat: str, again: int) -> None:
    """One call of three kernels for each of the two stacks, and another of the first one where it is computed again."""
    config = settings(remat=remat, attention="tpu", global_batch_size=1)
    compiled = ahead.compile_step(tiny_config(), config, make_mesh("data=1", topology("v5e:1x1")), length=64)
    program = compiled.as_text() or ""
    calls = [line for line in program.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    found = Counter(re.findall(r"policy_attention\w*", line)[-1] for line in calls)
    assert found == {"policy_attention": 2 + again, "policy_attention_keys": 2, "policy_attention_queries": 2}, calls
