"""A step's time is its own, whether the device computes it before or after the loop goes on."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from dynllava_jax.config.presets import tiny
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.training import record
from dynllava_jax.training.record import Recorder
from dynllava_jax.training.samples import Samples


class Value(np.ndarray):
    """A number of a device."""

    over = True

    def is_ready(self) -> bool:
        return self.over


class Written:
    def __init__(self) -> None:
        self.seconds: dict[int, float] = {}

    def write(self, step: int, values: dict[str, float]) -> None:
        self.seconds[step] = values["seconds"]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("over", [True, False])
def test_each_step_has_its_own_time(monkeypatch: pytest.MonkeyPatch, over: bool) -> None:
    """Where a step was over when it was begun, the one before had its time, and one before a checkpoint had none."""
    clock = SimpleNamespace(now=100.0)
    device = SimpleNamespace(free=100.0, ends={})
    monkeypatch.setattr(record, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def get(metrics: Any) -> Any:
        clock.now = max(clock.now, device.ends[float(metrics["loss"])])
        return metrics

    monkeypatch.setattr(record, "jax", SimpleNamespace(device_get=get))
    samples = SimpleNamespace(rows=lambda step: 4, plan=[SimpleNamespace(length=8, images=1)] * 8)
    written = Written()
    devices = [SimpleNamespace(device_kind="cpu")]
    recorder = Recorder([cast(Any, written)], cast(Samples, samples), tiny(), TrainConfig(), devices)
    took = {1: 5.0, 2: 3.0, 3: 7.0, 4: 2.0, 5: 4.0, 6: 6.0}
    for step, seconds in took.items():
        device.free = device.ends[step] = max(device.free, clock.now) + seconds
        if over:
            clock.now = device.free
        values = {"loss": step, "samples": 4, "read_tokens": 30, "grad_norm": 1}
        metrics = {name: np.array(float(value)).view(Value) for name, value in values.items()}
        for value in metrics.values():
            value.over = over
        recorder.add(step, cast(Any, metrics))
        if step % 3 == 0:
            recorder.settle()
            clock.now += 50  # a checkpoint
            recorder.note({})
    assert written.seconds == took
