"""What `--dump` writes lets anyone compare with other means."""

import json
from pathlib import Path

import numpy as np
import pytest

from dynllava_jax.verify.runner import SUPPORTED
from dynllava_jax.verify.subject import Subject
from dynllava_jax.verify.tolerance import tolerance


@pytest.mark.parametrize(
    "name",
    [
        "02_predictors",
        "03_masked_softmax",
        "04_dense",
        pytest.param("06_decode_kv", marks=pytest.mark.slow),
        "13_prepare_inputs",
    ],
)
def test_a_dump_holds_every_compared_array_with_padding_blanked(name: str, subject: Subject, tmp_path: Path) -> None:
    case = subject.recording.case(name)
    computed = SUPPORTED[name](subject, case)
    computed.dump(tmp_path / "case.npz")
    with np.load(tmp_path / "case.npz") as file:
        dumped = dict(file)
    for array in set(case.outputs) - set(computed.not_compared):
        values, reference = dumped[array], case.outputs[array]
        assert values.shape == reference.shape
        blank = np.isnan(values) if np.issubdtype(values.dtype, np.floating) else values == -999
        assert blank.any() == (array in computed.masked)
        allowed = tolerance(name, array, reference)
        assert allowed.error(values[~blank], reference[~blank]) <= allowed.limit
    for row, fact in case.info_rows().items():
        assert json.loads(str(dumped[row])) == fact
    assert bool(computed.rows_masked) == (name in ("03_masked_softmax", "04_dense", "13_prepare_inputs"))
