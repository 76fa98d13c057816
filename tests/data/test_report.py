"""`check` finds everything that would trouble a training run."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dynllava_jax.config.model import ImagePrep
from dynllava_jax.data.pack import pack
from dynllava_jax.data.preparation import Preparation
from dynllava_jax.data.report import check
from dynllava_jax.data.shards import ShardSource
from dynllava_jax.data.source import open_source
from dynllava_jax.data.templates import get_template
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.testing import synthetic_image
from tests.golden_files import ROOT


def sample(id: str, image: str | None = "1.png", question: str = "<image>\nWhat?", answer: str = "A cat.") -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": id, "conversations": turns} | ({} if image is None else {"image": image})


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., str]:
    synthetic_image().save(tmp_path / "1.png")
    synthetic_image(0, 4000, 1).save(tmp_path / "thin.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")

    def lines(*samples: Any) -> str:
        file = tmp_path / "data.jsonl"
        file.write_text("\n".join(value if isinstance(value, str) else json.dumps(value) for value in samples))
        return str(file)

    return lines


@pytest.fixture(scope="module")
def preparation() -> Preparation:
    tokenizer = Tokenizer.load(ROOT / "checkpoint")
    return Preparation(tokenizer, get_template("vicuna_v1"), 16, ImagePrep(), max_length=90, truncate=True)


def test_everything_is_found(write: Callable[..., str], preparation: Preparation) -> None:
    source = open_source(
        write(
            sample("a"),
            sample("a", None, "q"),
            sample("long", answer="the car " * 30),
            sample("missing", "2.png"),
            sample("outside", "../1.png"),
            sample("broken", "broken.png"),
            sample("marks", question="What?"),
            sample("cue", answer="x ASSISTANT: y"),
            sample("cut off", question="<image>" + "the car " * 60),
            '{"id": "json',
            {"id": "empty"},
        )
    )
    for workers in (0, 1):
        found = check(source, preparation, workers=workers)
        assert (found.samples, found.with_image, found.without_image) == (11, 8, 1)
        assert {reason: [id for id, _ in bad] for reason, bad in found.bad.items()} == {
            "missing image": ["missing"],
            "image path leaves the folder": ["outside"],
            "unreadable image": ["broken"],
            "<image> and pictures differ in number": ["marks"],
            "no supervised token": ["cue", "cut off"],
            "malformed record": [f"{source.name}, sample 9", "empty"],
        }
        assert (found.bad_count, found.ok, found.cut, found.repeated) == (8, False, ("long",), {"a": 2})
        assert found.lengths is not None
        assert sum(found.lengths.values()) == 6
        assert json.loads(json.dumps(found.as_json()))["bad"]["missing image"][0][0] == "missing"


def test_pictures_and_tokens_are_asked_for(write: Callable[..., str], preparation: Preparation) -> None:
    source = open_source(write(sample("broken", "broken.png"), sample("b", question="<image>", answer="")))
    assert [*check(source, preparation, pictures=False).bad] == ["empty question or answer"]
    without = check(source, None)
    assert ([*without.bad], without.lengths, without.longest) == (["unreadable image"], None, None)


def test_shards_are_compared_with_their_checksums(write: Callable[..., str], tmp_path: Path) -> None:
    made = pack(open_source(write(sample("a"), sample("b", "2.png"))), str(tmp_path / "out"))  # pyright: ignore[reportArgumentType]
    source = ShardSource.open(str(tmp_path / "out"))
    found = check(source, None)
    assert (found.ok, found.left_out, found.damaged) == (True, {"missing image": ("b",)}, ())
    file = tmp_path / "out" / made.shards[0].file
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)
    found = check(ShardSource.open(str(tmp_path / "out")), None)
    assert (found.ok, found.damaged) == (False, (file.name,))
