"""`tools/tune_products.py`: how it climbs, and what it leaves."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dynllava_jax.kernels import tuning
from dynllava_jax.kernels.tuning import ProductWalk
from tools import tune_products as tool

SOON = 3600.0


def test_it_climbs_to_the_fastest_and_asks_once_of_each() -> None:
    asked: list[ProductWalk] = []
    best = ProductWalk(64, 32, 8, 3)

    def cost(walk: ProductWalk) -> float:
        asked.append(walk)
        steps = [abs(a / b - b / a) for a, b in zip(vars(walk).values(), vars(best).values(), strict=True)]
        return float("inf") if walk.stages == 5 else sum(steps)

    assert tool.climb(ProductWalk(16, 128, 2, 4), cost, time.monotonic() + SOON) == best
    assert len(set(asked)) == len(asked)
    assert all(walk.columns >= 16 and walk.step >= 16 and walk.warps and walk.stages for walk in asked)


def test_without_time_the_first_one_stays() -> None:
    asked: list[ProductWalk] = []
    start = ProductWalk(32, 128, 4, 4)
    assert tool.climb(start, lambda walk: asked.append(walk) or 1.0, time.monotonic()) == start
    assert asked == [start]


def test_every_trial_is_written_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, used = tuning.GPU_PRODUCTS, []

    def tokens(preset: str, dtype: str, device: Any, walks: Any, name: str | None, new: int) -> Iterator[Any]:
        used.append((walks, name))
        yield {"mode": "dense", "ms_per_token": 4.0, "share_of_roofline": 0.8}

    monkeypatch.setattr(tool, "tokens", tokens)
    file = tmp_path / "walks.jsonl"
    monkeypatch.setattr("sys.argv", ["tune_products.py", str(file), "--rehearse", "--seconds", "0"])
    assert tool.main() == 0
    records = [json.loads(line) for line in file.read_text().splitlines()]
    kernels = {each["kernel"]: each for each in records if "kernel" in each}
    assert list(kernels) == ["rotated", "gated", "out", "down"]
    assert all(each["us"] > 0 for each in kernels.values())
    assert [each["products"] for each in records if "products" in each] == ["xla", "table", "fastest"]
    assert [name for _, name in used] == [None, "triton-interpret", "triton-interpret"]
    assert table == tuning.GPU_PRODUCTS


def test_a_walk_that_does_not_compile_is_never_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    records: list[dict[str, Any]] = []

    def too_large(*_: Any, **__: Any) -> float:
        raise tool.jax.errors.JaxRuntimeError("out of shared memory\nby far")

    monkeypatch.setattr(tool, "measure", too_large)
    one = tool.Kernel("gated", lambda: None, (), 1)
    trial = tool.Trial({"gated": one}, tool.Machine("GPU", "gpu", 1.0, 1.0), records.append, 0.0)
    assert trial.cost("gated", tuning.GPU_PRODUCTS.gated) == float("inf")
    assert records[0]["error"] == "out of shared memory"
