"""The recordings of the official code hold, case by case, at the recording's own tolerances."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from dynllava_jax.verify.cases import read_recording
from dynllava_jax.verify.compare import compare
from dynllava_jax.verify.runner import SUPPORTED, verify
from dynllava_jax.verify.subject import Subject
from tests.convert.torch_folders import Tensors, change_config, change_tensors
from tests.golden_files import arrays
from tests.verify.recordings import change_json, part

NEVER_COMPARED = {
    "01_vision_features": {"clip_hidden_3"},
    "06_decode_kv": {"b2.logits", "b2.final_key_last_layer"},
    "07_decode_nocache": {f"b{rows}.j00.{name}" for rows in (1, 2) for name in ("last_logits", "position_ids_after")},
    "13_prepare_inputs": {"one_without_image.train_loss"},
}
"""All that may stand without comparison, besides arrays of shape [0] in case 13."""
SLOW = {"06_decode_kv", "07_decode_nocache", "10b_train_instruct", "11_tokenpacker", "14_train_trajectory"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in SUPPORTED]
)
def test_case_holds(name: str, subject: Subject) -> None:
    case = subject.recording.case(name)
    report = compare(case, SUPPORTED[name](subject, case), "cpu")
    assert {array: row for array, row in report.arrays.items() if not row.ok} == {}
    compared = {array for array in report.arrays if not array.startswith("info.")}
    assert compared | set(report.not_compared) == set(case.outputs)
    empty = {array for array, value in case.outputs.items() if name.startswith("13") and value.shape == (0,)}
    assert set(report.not_compared) == NEVER_COMPARED.get(name, set()) | empty


def test_the_groups_of_a_linear_projector(tmp_path: Path) -> None:
    """Its tensors could also be called as `mlp1x_gelu` calls them; a group has the ones that there are."""
    folder = part(tmp_path / "linear", "12_optimizer_groups")
    change_config(folder / "checkpoint", mm_projector_type="linear")

    def shorten(tensors: Tensors) -> None:
        for end in ("weight", "bias"):
            tensors[f"model.mm_projector.{end}"] = tensors.pop(f"model.mm_projector.0.{end}")
            del tensors[f"model.mm_projector.2.{end}"]

    change_tensors(folder / "checkpoint", shorten)
    file = folder / "cases" / "12_optimizer_groups.json"
    info = json.loads(file.read_text())["info"]
    for group in info["groups"]:
        names = [name.replace("mm_projector.0.", "mm_projector.") for name in group["params"]]
        group["params"] = [name for name in names if "mm_projector.2." not in name]
    change_json(file, info=info)
    recording = read_recording(folder)
    assert verify(recording, recording.names).ok


@pytest.mark.slow
def test_a_trajectory_without_predictors(subject: Subject) -> None:
    """It has no mask losses, and its loss is the cross-entropy."""
    case = subject.recording.case("14_train_trajectory")
    off = {name: False for name in case.sparse_config or {} if name.startswith("use_")}
    assert len(off) == 4
    outputs = {"loss_total": case.outputs["loss_total"][:1], "mask_losses": np.zeros((1, 0), np.float32)}
    case = dataclasses.replace(case, sparse_config={**(case.sparse_config or {}), **off}, outputs=outputs)
    found = SUPPORTED[case.name](subject, case).values
    assert found["mask_losses"].shape == (1, 0)
    assert 0 < found["loss_total"][0] < outputs["loss_total"][0]


def test_every_inference_case_is_here() -> None:
    numbers = {name.split("_")[0] for name in SUPPORTED}
    assert numbers >= {"01", "01b", "02", "03", "04", "05", "06", "07", "08", "08b", "09", "09b", "11", "13"}


def test_recorded_decisions_are_mixtures() -> None:
    """Else agreement on them would mean nothing."""
    decisions = arrays("06_decode_kv")["b2clean.text_decision"]
    assert 0 < np.mean(decisions) < 1
