"""The demo's evaluation: what is asked, what counts as right, and that a stopped run goes on."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynllava_jax.demo.questions import KINDS
from dynllava_jax.errors import InputError
from dynllava_jax.evaluation.metrics import exact, ratio, share
from dynllava_jax.evaluation.rows import answers
from dynllava_jax.evaluation.tasks import questions
from dynllava_jax.inference.assistant import Assistant


class Echo(Assistant):
    """Answers with the question, and counts."""

    def __init__(self) -> None:
        self.asked = 0

    def generate_batch(self, requests: Any, *, dense: bool = False, use_cache: bool = True) -> list[Any]:
        self.asked += len(requests)
        return [type("Answer", (), {"text": request.question}) for request in requests]


def test_blind_questions_are_the_same_with_other_pictures_of_the_same_kind() -> None:
    seen, blind = questions(18), questions(18, blind=True)
    assert [q.text for q in seen] == [q.text for q in blind]
    assert [q.kind for q in seen] == [*KINDS] * 2
    assert all(
        a.shown.scene != b.shown.scene and a.shown.kinds == b.shown.kinds for a, b in zip(seen, blind, strict=True)
    )
    assert seen[3].picture.size == (336, 336)


def test_exact_match() -> None:
    assert exact(" Top left.", "top left")
    assert exact("Top left .", "top left")
    assert not exact("top", "top left")


def test_intervals_cover_what_they_should() -> None:
    right = np.arange(1000) % 10 < 7
    found = share(right)
    assert found.value == 0.7
    # 1.96 standard errors of a share of 0.7 in 1000.
    assert found.low == pytest.approx(0.7 - 0.0284, abs=0.004)
    assert found.high == pytest.approx(0.7 + 0.0284, abs=0.004)
    assert ratio(right, right) == (1.0, 1.0, 1.0)
    worse = ratio(right & (np.arange(1000) % 20 < 15), right)
    assert worse.low < worse.value < worse.high < 1.0


def test_rows_are_kept_and_gone_on_with(tmp_path: Path) -> None:
    file, asked, echo = tmp_path / "rows" / "m.jsonl", questions(20), Echo()
    texts = answers(echo, asked, file)
    assert texts == [question.text for question in asked]
    lines = file.read_text().splitlines()
    assert json.loads(lines[0]) == {
        "id": asked[0].id,
        "kind": asked[0].kind,
        "wanted": asked[0].answer,
        "text": texts[0],
    }
    file.write_text("\n".join(lines[:7]) + "\n" + lines[7][:10])
    counts: list[int] = []
    assert answers(echo, asked, file, counts.append) == texts
    assert echo.asked == 20 + 13
    assert counts == [7, 13]
    with pytest.raises(InputError, match="not asked"):
        answers(echo, asked[:5], file)
