"""The least time of a program, and what a run asks of time at a utilisation that is supposed."""

from typing import Any

import pytest

from dynllava_jax.planning.collectives import Traffic
from dynllava_jax.planning.cost import data_rate, epoch
from dynllava_jax.planning.machine import machine
from dynllava_jax.planning.roofline import roofline
from dynllava_jax.planning.table import lines

H100 = machine("h100:2x8")
SENT = [Traffic("all-gather", 3, 45e9, 0.0), Traffic("all-reduce", 1, 60e9, 15e9)]


def test_each_bound_is_its_own() -> None:
    found = roofline(H100, 16, 16 * 989e12 * 0.25, 3.352e12 * 0.1, SENT)
    assert found.compute == pytest.approx(0.25)
    assert found.memory == pytest.approx(0.1)
    assert found.network == pytest.approx(90e9 / 450e9 + 15e9 / 50e9)  # within a host, and across
    assert (found.seconds, found.bound) == (found.network, "network")


@pytest.mark.parametrize(
    ("operations", "moved", "bound"), [(1e18, 1e6, "compute"), (1e6, 1e13, "memory"), (1e6, 1e6, "network")]
)
def test_the_largest_sets_the_time(operations: float, moved: float, bound: str) -> None:
    found = roofline(H100, 16, operations, moved, SENT)
    assert found.bound == bound
    assert found.seconds == getattr(found, bound)


def test_a_slice_has_one_network() -> None:
    found = roofline(machine("v5e-64"), 64, 0.0, 0.0, [Traffic("all-gather", 1, 50e9, 50e9)])
    assert found.network == pytest.approx(0.5)


def step(**more: Any) -> dict[str, Any]:
    """Half a second of 16 H100 at 40 % of their peak."""
    return {
        "program": "step",
        "topology": "h100:2x8",
        "mesh": {"data": 2, "fsdp": 8, "tensor": 1},
        "global_batch": 64,
        "sequence_length": 2048,
        "flops_per_step": 0.5 * 16 * 989e12 * 0.4,
        "checkpoint_bytes": 5 << 30,
        "host_bytes_while_saving": 3 << 30,
        "host_bytes_per_step": 40_000_000,
        **more,
    }


def test_an_epoch_is_paid_for_by_the_step() -> None:
    cost = epoch(step(), samples=6401, mfu=0.4, machine=H100)
    assert cost["steps"] == 101
    assert cost["hours"] == pytest.approx(101 * 0.5 / 3600)
    assert cost["chip_hours"] == pytest.approx(16 * cost["hours"])
    assert "least_hours" not in cost


def test_a_host_is_asked_for_its_share_of_every_step() -> None:
    assert data_rate(step(), 0.4, H100) == {"at_mfu": pytest.approx(80e6), "mfu": 0.4}
    bounded = step(roofline={"seconds": 0.25})
    assert data_rate(bounded, 0.4, H100)["at_roofline"] == pytest.approx(160e6)


@pytest.mark.parametrize(("seconds", "reachable"), [(0.25, True), (1.0, False)])
def test_a_utilisation_that_no_run_reaches_is_said(seconds: float, reachable: bool) -> None:
    report = step(roofline={"seconds": seconds, "bound": "network", "compute": 0.2, "memory": 0.1, "network": seconds})
    report["host_bytes_per_second"] = data_rate(report, 0.4, H100)
    report["cost"] = epoch(report, 640_000, 0.4, H100)
    printed = "\n".join(lines(report))
    assert f"40 MB a step and host, decoded: {40 / seconds:.0f} MB/s at the least time, 80 MB/s at 40% MFU" in printed
    assert ("no run reaches: it takes 2.8 hours at least" in printed) == (not reachable)
