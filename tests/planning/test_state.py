"""What a run holds beside its program: the state on devices, hosts and disk, and what is kept for the backward pass."""

import dataclasses
import math

import jax
import pytest

from dynllava_jax.config.experiment import read_experiment
from dynllava_jax.config.training import TrainConfig
from dynllava_jax.nn.flat import flatten
from dynllava_jax.planning.activations import kept_activations
from dynllava_jax.planning.machine import machine
from dynllava_jax.planning.state import State, training_state
from dynllava_jax.planning.table import lines, picture
from dynllava_jax.sharding.mesh import make_mesh
from dynllava_jax.training.ahead import arguments
from dynllava_jax.training.setup import preset_model
from dynllava_jax.training.step import Trainer

GIVEN = ("--config.data.source=unread", "--config.init.checkpoint=unread")
TINY = read_experiment("configs/tiny.py", GIVEN)
LENGTH = 64


def trainer(config: TrainConfig = TINY, mesh: str = "fsdp=-1") -> Trainer:
    return Trainer(preset_model(config), config, make_mesh(mesh, jax.devices()), total=1000)


def state(name: str, mesh: str) -> State:
    return training_state(trainer(mesh=mesh), machine(name), LENGTH, images=1)


def test_a_checkpoint_holds_weights_and_both_moments() -> None:
    made = trainer()
    shapes = flatten(made.parameters.abstract)
    count = sum(math.prod(shapes[path].shape) for path in made.parameters.trained)
    assert count > 0
    assert state("a100:1x8", "fsdp=-1").checkpoint == 3 * 4 * count


@pytest.mark.parametrize(
    ("name", "per_host", "hosts"), [("a100:1x8", 8, 1), ("h100:2x4", 4, 2), ("v5e-8", 8, 1), ("v5p-16", 4, 2)]
)
def test_a_host_copies_what_its_devices_hold(name: str, per_host: int, hosts: int) -> None:
    found = state(name, "fsdp=-1")
    held = found.held["parameters"] + found.held["moments"]
    assert found.host_saving == per_host * held
    assert hosts * found.host_saving >= found.checkpoint > hosts * found.host_saving / 2  # small arrays lie on all
    pixels = 3 * preset_model(TINY).vision.image_size ** 2
    of_tokens, of_row = 4 * LENGTH, 2  # ids, kinds, positions, labels; lengths
    assert hosts * found.host_batch == TINY.global_batch_size * 4 * (pixels + of_tokens + of_row)


def test_copies_of_the_weights_are_not_saved_twice() -> None:
    whole, copied = state("a100:2x4", "fsdp=8"), state("a100:2x4", "data=2,fsdp=4")
    assert copied.checkpoint == whole.checkpoint
    assert copied.host_saving > 1.5 * whole.host_saving  # every host has them all


def activations(config: TrainConfig, mesh: str = "fsdp=-1") -> int:
    made = trainer(config, mesh)
    _, _, batch = arguments(made, LENGTH, 1)
    return kept_activations(made, batch)


@pytest.mark.slow
def test_a_policy_that_computes_more_twice_keeps_less() -> None:
    none, dots, full = (activations(dataclasses.replace(TINY, remat=remat)) for remat in ("none", "dots", "full"))
    assert none > dots > full > 0
    decoder = preset_model(TINY).decoder
    assert full >= decoder.num_layers * LENGTH * decoder.hidden_size * 4  # each layer's input, of one row


@pytest.mark.slow
def test_activations_grow_with_what_a_device_holds_at_a_time() -> None:
    one = activations(TINY)
    assert activations(dataclasses.replace(TINY, global_batch_size=24)) == 3 * one
    assert activations(TINY, mesh="data=2,fsdp=2,tensor=2") == 2 * one
    assert activations(dataclasses.replace(TINY, global_batch_size=24, device_batch_size=1)) == one


def test_they_are_told_and_drawn_as_a_part_of_the_temporaries() -> None:
    size = {"arguments": 2 << 30, "temporaries": 5 << 30, "output": 0, "total": 7 << 30, "limit": 10 << 30}
    report = {"program": "step", "topology": "a100:1x8", "mesh": {"fsdp": 8}, "fits": True, "bytes_per_device": size}
    report["activations_per_device"] = 3 << 30
    assert "activations kept for the backward pass up to 3.00 GiB, among the temporaries" in "\n".join(lines(report))
    drawn = picture([report])
    widths = [float(part.split('width="')[1].split('"')[0]) for part in drawn.splitlines() if 'height="18"' in part]
    assert widths == pytest.approx([84.0, 126.0, 84.0, 0.0])
