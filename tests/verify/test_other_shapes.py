"""Recordings of other models: nothing is built for the goldens' shapes.

There are no official numbers for these shapes here, so the paths are held against each other and against arithmetic.
"""

import numpy as np
import pytest

from dynllava_jax.verify.cases import Recording, read_recording
from dynllava_jax.verify.computed import Computed
from dynllava_jax.verify.runner import SUPPORTED
from dynllava_jax.verify.subject import Subject
from tests.verify.recordings import GRID, GROUPS, other_shapes

pytestmark = pytest.mark.slow

CASES = (
    "01_vision_features",
    "02_predictors",
    "04_dense",
    "05_prefill_kv",
    "06_decode_kv",
    "07_decode_nocache",
    "08_instruct_prefill",
    "09_multi_turn_kv",
    "13_prepare_inputs",
    "15_preprocess_text",
)
PATCHES, KEPT = GRID**2, 10  # int(36 · 0.29)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return read_recording(other_shapes(tmp_path_factory.mktemp("other") / "set", *CASES))


@pytest.fixture(scope="module")
def found(recording: Recording) -> dict[str, Computed]:
    subject = Subject.convert(recording)
    return {name.split("_")[0]: SUPPORTED[name](subject, recording.case(name)) for name in CASES}


def test_shapes_follow_the_config(recording: Recording, found: dict[str, Computed]) -> None:
    prefill = found["05"].values
    length = recording.case("05_prefill_kv").inputs["input_ids"].shape[1] - 1 + PATCHES
    assert found["01"].values["projected"].shape[1] == PATCHES
    assert prefill["image_logits"].shape == (1, PATCHES, 2)
    assert prefill["image_keep_index"].shape == (1, KEPT)
    np.testing.assert_array_equal(prefill["cache_len"], [length, *[length - PATCHES + KEPT] * 3])
    assert prefill["key_1"].shape[1:3] == (GROUPS, length - PATCHES + KEPT)
    scores = prefill["image_keep_score"][0]
    np.testing.assert_array_equal(prefill["image_keep_index"][0], np.sort(np.argsort(-scores)[:KEPT]))


def test_every_output_is_accounted_for(recording: Recording, found: dict[str, Computed]) -> None:
    for name in CASES:
        computed = found[name.split("_")[0]]
        assert set(recording.case(name).outputs) <= set(computed.values) | set(computed.not_compared)


def test_paths_agree(recording: Recording, found: dict[str, Computed]) -> None:
    dense = found["04"].values
    assert dense["b1.greedy_ids"][0, 0] == np.argmax(dense["b1.logits"][0, -1])
    decode, anew = found["06"].values, found["07"].values
    assert decode["gen.greedy_ids"][0, 0] == np.argmax(found["05"].values["logits"][0, -1])
    # After one answer token nothing of the answer was judged yet: with and without a cache are the same.
    one = recording.case("07_decode_nocache").info["steps"].index(1)
    np.testing.assert_allclose(anew["b2.j01.last_logits"], anew["clean_kv_logits"][:, one], atol=5e-5)
    # A sample of a batch is the sample alone.
    np.testing.assert_allclose(decode["b2clean.logits"][:1], decode["b1.logits"], atol=5e-5)
    np.testing.assert_array_equal(decode["b2clean.text_decision"][:1], decode["b1.text_decision"])
