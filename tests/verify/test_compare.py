"""When two arrays agree, and what is said when they do not."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynllava_jax.verify.cases import Case
from dynllava_jax.verify.compare import CaseReport, Row, compare
from dynllava_jax.verify.computed import Computed
from dynllava_jax.verify.report import Report, case_line, closing
from dynllava_jax.verify.tolerance import Platform, tolerance


def case(outputs: dict[str, Any], info: dict[str, Any] | None = None, name: str = "05_prefill_kv") -> Case:
    arrays = {key: np.asarray(value) for key, value in outputs.items()}
    return Case(name, Path("nowhere"), "", (), info or {}, None, {}, arrays, {})


def row(reference: Any, value: Any, array: str = "logits", platform: Platform = "cpu") -> Row:
    found = Computed()
    found.put(array, value)
    return compare(case({array: reference}), found, platform).arrays[array]


@pytest.mark.parametrize(
    ("name", "array", "reference", "limit", "relative"),
    [
        ("05_prefill_kv", "logits", np.array([0.1, -0.5]), 2e-5, False),
        ("05_prefill_kv", "logits", np.array([0.1, -5.0]), 1e-4, False),
        ("05_prefill_kv", "cache_len", np.array([3, 4]), 0.0, False),
        ("06_decode_kv", "b1.text_decision", np.array([True]), 0.0, False),
        ("03_masked_softmax", "causal_hard.grad_policy", np.array([0.5, -0.1]), 5e-5, False),
        ("10_train", "grad.model.mm_projector.0.weight", np.array([2.0]), 2e-4, False),
        ("12_optimizer_groups", "lr_total7_warm1", np.array([5e-6]), 1e-6, True),
        ("14_train_trajectory", "loss_total", np.array([7.0]), 1e-4, True),
        ("14_train_trajectory", "final.model.mm_projector.0.weight", np.array([7.0]), 1e-4, False),
        ("07_decode_nocache", "b1.j00.text_logits", np.zeros((1, 0, 2), np.float32), 0.0, False),
    ],
)
def test_tolerance(name: str, array: str, reference: np.ndarray, limit: float, relative: bool) -> None:
    allowed = tolerance(name, array, reference)
    assert allowed.limit == pytest.approx(limit)
    assert allowed.relative is relative


def test_error_within_and_beyond_the_tolerance() -> None:
    assert row([1.0, 2.0], [1.0, 2.00003]).ok
    assert not row([1.0, 2.0], [1.0, 2.0001]).ok
    assert not row([1, 2], [1, 3]).ok


def test_a_relative_error_is_divided_by_each_value() -> None:
    reference = np.array([1e-6, 1.0])
    allowed = tolerance("12_optimizer_groups", "lr_total7_warm1", reference)
    assert allowed.error(np.array([1.1e-6, 1.0]), reference) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("value", "problem"),
    [([[1.0, 2.0]], "shape [1, 2] instead of [2]"), ([1.0, np.nan], "not a finite number everywhere")],
)
def test_what_cannot_be_subtracted_does_not_hold(value: Any, problem: str) -> None:
    found = row([1.0, 2.0], value)
    assert not found.ok
    assert found.max_error is None
    assert found.problem == problem


def test_a_recorded_infinity_must_be_met_and_excuses_nothing() -> None:
    assert row([-np.inf, 2.0], [-np.inf, 2.00001]).ok
    for recorded, value in (([-np.inf, 2.0], [-np.inf, 3.0]), ([np.inf, 2.0], [1.0, 2.0]), ([np.nan, 2.0], [1.0, 2.0])):
        found = row(recorded, value)
        assert not found.ok
        assert found.tolerance == pytest.approx(4e-5)
    relative = case({"lr_total7_warm1": [np.inf, 1e-6]}, name="12_optimizer_groups")
    found = Computed()
    found.put("lr_total7_warm1", [np.inf, 1e-6])
    assert compare(relative, found, "cpu").ok
    found.put("lr_total7_warm1", [1.0, 1e-6])
    assert not compare(relative, found, "cpu").ok


@pytest.mark.parametrize("wrong", [np.inf, np.nan, 2.1])
def test_a_fact_that_is_no_number_does_not_hold(wrong: float) -> None:
    found = Computed()
    found.info["info.grad_norms"] = {"head": 2.0, "tower": None}
    assert compare(case({}, {"grad_norms": {"head": 2.0, "tower": None}}), found, "cpu").ok
    report = compare(case({}, {"grad_norms": {"head": wrong, "tower": None}}), found, "cpu")
    assert not report.ok
    json.dumps(report.as_json(), allow_nan=False)


def test_an_array_or_fact_that_nobody_computed_does_not_hold() -> None:
    report = compare(case({"logits": [1.0]}, {"input_embeds_indices": [{"image": [1, 2]}]}), Computed(), "cpu")
    assert {name: found.problem for name, found in report.arrays.items()} == {
        "logits": "not computed",
        "info.input_embeds_indices": "not computed",
    }
    assert list(closing(Report({"05_prefill_kv": report}, [])))[-1] == "0 of 1 cases hold (0 arrays compared)"


def test_masked_rows_are_counted_and_do_not_matter(tmp_path: Path) -> None:
    found = Computed()
    found.put("hidden", np.array([[1.0, 2.0], [9.0, 9.0]]), masked=np.array([False, True]))
    found.put("index", np.array([4, 5]), masked=np.array([True, False]))
    report = compare(case({"hidden": [[1.0, 2.0], [3.0, 4.0]], "index": [7, 5]}), found, "cpu")
    assert report.ok
    assert report.rows_masked == 2
    found.dump(tmp_path / "case.npz")
    with np.load(tmp_path / "case.npz") as dumped:
        np.testing.assert_array_equal(dumped["hidden"], [[1.0, 2.0], [np.nan, np.nan]])
        np.testing.assert_array_equal(dumped["index"], [-999, 5])


def test_a_platforms_bound_stands_beside_the_tolerance_and_never_replaces_it() -> None:
    found = Computed()
    found.put("logits", [1.0, 2.0001])
    recorded = case({"logits": [1.0, 2.0]})
    report = compare(recorded, found, "gpu")
    assert not report.ok
    entry = report.as_json()["arrays"]["logits"]
    assert entry["tolerance"] == pytest.approx(4e-5)
    assert entry["platform_bound"] == pytest.approx(4e-4)
    assert "platform_bound" not in compare(recorded, found, "cpu").as_json()["arrays"]["logits"]
    assert any("within the" in line for line in closing(Report({"05_prefill_kv": report}, [])))


def test_json_and_table_survive_every_kind_of_failure() -> None:
    found = Computed()
    found.put("logits", [np.inf])
    found.skip("extra", "a reason")
    report = Report({"05_prefill_kv": compare(case({"logits": [1.0], "extra": [1]}), found, "cpu")}, ["10_train"])
    assert not report.ok
    assert json.loads(json.dumps(report.as_json(), allow_nan=False)) == {
        "cases": {
            "05_prefill_kv": {
                "ok": False,
                "rows_masked": 0,
                "arrays": {
                    "logits": {
                        "max_error": None,
                        "tolerance": 2e-5,
                        "ok": False,
                        "problem": "not a finite number everywhere",
                    }
                },
                "not_compared": {"extra": "a reason"},
            }
        },
        "unsupported": ["10_train"],
    }
    lines = [case_line(name, verdict) for name, verdict in report.cases.items()] + [case_line("10_train", None)]
    assert "FAIL" in lines[0]
    assert "unsupported" in lines[1]
    assert list(closing(report))[-1].endswith("asked for but not supported: 10_train")


def test_half_precision_may_choose_otherwise_between_equals() -> None:
    """Five image tokens of which two stay, positions 0 and 6 around them; token 2 and 3 are nearly equal."""
    score = np.array([[-4.0, -1.0, -2.0, -2.01, -4.0]], np.float32)
    recorded = case(
        {
            "image_keep_score": score,
            "image_keep_index": np.array([[1, 2]]),
            "position_ids_after": np.array([[0, 2, 3, 6]]),
            "logits": np.arange(8.0).reshape(1, 4, 2),
            "key_3": np.arange(8.0).reshape(1, 2, 4, 1),
        }
    )

    def ours(kept: list[int], dtype: str) -> CaseReport:
        found = Computed()
        found.put("image_keep_score", score)
        found.put("image_keep_index", np.array([kept]))
        found.put("position_ids_after", np.array([[0, *(1 + token for token in kept), 6]]))
        found.put("logits", np.array([[[0.0, 1], [2, 3], [9, 9], [6, 7]]]))
        found.put("key_3", np.array([[[[0.0], [1], [9], [3]], [[4], [5], [9], [7]]]]))
        return compare(recorded, found, "cpu", dtype)

    report = ours([1, 3], "bfloat16")
    assert report.ok
    assert report.rows_masked == 2 + 1 + 1 + 2  # the two indices; one position, one row of logits, one key of each head
    assert not ours([1, 3], "float32").ok
    assert not ours([1, 4], "bfloat16").ok  # no near thing


def test_half_precision_may_decide_otherwise_where_scores_are_equal() -> None:
    scores = np.array([[[3.0, 1.0], [2.0, 1.99], [1.0, 3.0]]])
    logits = np.array([[[5.0, 1.0], [4.0, 3.99], [1.0, 2.0]]])
    recorded = case(
        {
            "b1.text_logits": scores,
            "b1.text_decision": np.array([[True, True, False]]),
            "b1.cache_len": np.array([[1], [2], [2]]),
            "b1.logits": np.ones((1, 3, 4)),
            "gen.greedy_ids": np.array([[0, 0, 1]]),
            "gen.logits": logits,
        },
        name="06_decode_kv",
    )

    def ours(decision: list[bool], ids: list[int], dtype: str = "float16") -> CaseReport:
        found = Computed()
        found.put("b1.text_logits", scores)
        found.put("b1.text_decision", np.array([decision]))
        found.put("b1.cache_len", np.cumsum(decision)[:, None])
        found.put("b1.logits", np.array([[[1.0] * 4, [1.0] * 4, [7.0 if not decision[1] else 1.0] * 4]]))
        found.put("gen.greedy_ids", np.array([ids]))
        found.put("gen.logits", logits + (np.array(ids) != [0, 0, 1])[None, :, None] * np.array([[[0], [0], [9.0]]]))
        return compare(recorded, found, "cpu", dtype)

    assert ours([True, False, False], [0, 1, 0]).ok
    assert not ours([True, False, False], [0, 0, 1], "float32").ok
    assert not ours([False, True, False], [0, 0, 1]).ok
    assert not ours([True, True, False], [1, 0, 1]).ok
