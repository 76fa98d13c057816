"""Questions and descriptions: true, of nine kinds, and hard to guess blindly."""

import functools
import json
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynllava_jax.cli.main import main
from dynllava_jax.data.source import open_source
from dynllava_jax.demo.catalogue import NUMBERS, OBJECTS, PLACES
from dynllava_jax.demo.dataset import DESCRIPTION, Mixture, Sample, sample
from dynllava_jax.demo.descriptions import describe, noun_phrase
from dynllava_jax.demo.questions import KINDS
from dynllava_jax.demo.scenes import Scene


@functools.cache  # not while tests are collected, which every worker does
def single() -> list[Sample]:
    return [sample(index, "test", Mixture(turns=1, descriptions=0.0)) for index in range(3600)]


def is_true(scene: Scene, kind: str, question: str, answer: str) -> bool:
    """Reads the question as a person would, with nothing but the scene's list of things."""
    things = {p.thing.name: p for p in scene.placements}
    plural = {thing.plural: thing.name for thing in OBJECTS}
    words = question.rstrip("?").split()
    if kind == "count":
        return answer == NUMBERS[sum(p.thing.name == plural[words[2]] for p in scene.placements)]
    if kind == "total":
        return answer == NUMBERS[len(scene.placements)]
    if kind == "what":
        place = PLACES.index(" ".join(words[-2:]))
        return [answer.split()[1]] == [p.thing.name for p in scene.placements if p.place == place]
    if kind == "where":
        return answer == PLACES[things[words[-1]].place]
    if kind == "colour":
        return answer == things[words[-1]].colour
    if kind == "size":
        return answer == things[words[2]].size
    if kind == "exist":
        return answer == ("yes" if words[3] in things else "no")
    if kind == "background":
        return answer == scene.background.phrase
    assert kind == "relation"
    first, second = things[words[2]], things[words[-1]]
    holds = {
        "left": first.column < second.column,
        "right": first.column > second.column,
        "above": first.row < second.row,
        "below": first.row > second.row,
    }[words[3]]
    return answer == ("yes" if holds else "no")


def test_answers_are_true() -> None:
    for each in (*single(), *(sample(index, "train", Mixture(9, 0.0)) for index in range(400))):
        assert len(set(each.kinds)) == len(each.kinds) == len(each.turns)
        for kind, turn in zip(each.kinds, each.turns, strict=True):
            assert turn.answer is not None
            assert is_true(each.scene, kind, turn.question, turn.answer), (each.id, turn)


def test_nine_kinds_equally_often() -> None:
    assert len(KINDS) == 9
    assert set(Counter(each.kinds[0] for each in single()).values()) == {len(single()) // 9}


BLIND = {
    "background": 0.15,
    "colour": 0.3,
    "count": 0.45,
    "exist": 0.56,
    "relation": 0.56,
    "size": 0.56,
    "total": 0.3,
    "what": 0.1,
    "where": 0.25,
}
"""Highest share of the most frequent answer to each kind, with some room for chance."""


def test_guessing_the_most_frequent_answer_gains_little() -> None:
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for each in single():
        answers[each.kinds[0]][str(each.turns[0].answer)] += 1
    for kind, found in answers.items():
        assert found.most_common(1)[0][1] / found.total() < BLIND[kind], (kind, found)


def test_descriptions_are_long_and_name_everything() -> None:
    for index in range(600):
        scene = sample(index, "train").scene
        text = describe(scene)
        assert 60 <= len(text.split()) <= 120
        for placement in scene.placements:
            assert f"In the {PLACES[placement.place]} there is {noun_phrase(placement)}," in text
        assert text.count("There is nothing in the ") == 6 - len(scene.placements)
        assert text.count(scene.background.phrase) == 2


def test_the_command_writes_what_training_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "make", str(tmp_path), "--samples", "12", "--split", "test", "--descriptions", "0.5"]) == 0
    source = open_source(str(tmp_path / "test.json"), str(tmp_path))
    assert len(source) == 12
    records = json.loads((tmp_path / "test.json").read_text())
    assert {DESCRIPTION in record["kinds"] for record in records} == {True, False}
    for index, raw in enumerate(records):
        record, made = source.record(index), sample(index, "test", Mixture(8, 0.5))
        assert [turn.answer for turn in record.turns] == [turn.answer for turn in made.turns]
        assert [t["name"] for t in raw["scene"]["things"]] == [p.thing.name for p in made.scene.placements]
        assert source.picture(record, 0).size == (336, 336)
        with Image.open(tmp_path / "test" / f"{record.id}_mask.png") as mask:
            assert np.asarray(mask).max() == len(raw["scene"]["things"])
    assert main(["demo", "make", str(tmp_path), "--split", "test"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_a_disk_that_is_full_leaves_no_list_that_looks_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "train.json.tmp").symlink_to("/dev/full")
    assert main(["demo", "make", str(tmp_path), "--samples", "2"]) == 2
    assert f"{tmp_path} cannot be written: No space left on device" in capsys.readouterr().err
    assert not (tmp_path / "train.json").exists()


def test_processes_write_the_same_bytes_in_the_same_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for workers in ("0", "2"):
        command = ["demo", "make", str(tmp_path / workers), "--samples", "40", "--seed", "3", "--workers", workers]
        assert main(command) == 0
    alone, shared = (sorted((tmp_path / workers).rglob("*.*")) for workers in ("0", "2"))
    assert len(alone) == 81
    assert [path.name for path in alone] == [path.name for path in shared]
    for one, other in zip(alone, shared, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name
    for option in ("--workers", "--seed"):
        assert main(["demo", "make", str(tmp_path / "none"), option, "-1"]) == 2
        assert f"{option} must be 0 or more" in capsys.readouterr().err
