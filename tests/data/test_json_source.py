"""LLaVA JSON lists and JSON lines as a source."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynllava_jax.data import json_places
from dynllava_jax.data.source import SampleError, Source, open_source
from dynllava_jax.data.templates import Turn
from dynllava_jax.errors import InputError
from dynllava_jax.testing import synthetic_image

_ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)


def sample(id: str = "a", image: Any = "1.png", question: str = "<image>\nWhat?", answer: str = "A cat.") -> dict:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": id, "conversations": turns} | ({} if image is None else {"image": image})


def write(folder: Path, samples: list[Any], lines: bool = False) -> Path:
    file = folder / ("data.jsonl" if lines else "data.json")
    text = "\n".join(json.dumps(value, ensure_ascii=False) for value in samples) if lines else json.dumps(samples)
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("lines", [False, True])
def test_records_and_pictures(tmp_path: Path, lines: bool) -> None:
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    picture = synthetic_image(1)
    picture.save(tmp_path / "pictures" / "deep" / "1.png")
    file = write(tmp_path, [sample("ä", "deep/1.png"), sample("b", None)], lines)
    source: Source = open_source(str(file), str(tmp_path / "pictures"))
    for opened in (source, pickle.loads(pickle.dumps(source))):
        assert isinstance(opened, Source)
        assert len(opened) == 2
        record = opened.record(0)
        assert (record.id, record.turns) == ("ä", (Turn("<image>\nWhat?", "A cat."),))
        np.testing.assert_array_equal(opened.picture(record, 0), picture)
        assert opened.record(1).images == ()


def test_a_file_that_is_cut_short_while_it_is_open(tmp_path: Path) -> None:
    file = write(tmp_path, [sample("a", None), sample("b", None)])
    source = open_source(str(file))
    assert source.record(1).id == "b"
    os.truncate(file, file.stat().st_size - 30)
    assert source.record(0).id == "a"
    with pytest.raises(SampleError, match=r"data\.json, sample 1': data file cut short"):
        source.record(1)


def test_pictures_lie_beside_the_file_by_default(tmp_path: Path) -> None:
    synthetic_image().save(tmp_path / "1.png")
    source = open_source(str(write(tmp_path, [sample()])))
    assert source.picture(source.record(0), 0).size == (96, 64)


@given(texts=st.lists(_ANY_TEXT, min_size=1, max_size=5), indent=st.sampled_from([None, 1]), window=st.integers(1, 90))
def test_a_list_is_found_whatever_its_strings_hold(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], indent: int | None, window: int
) -> None:
    file = tmp_path_factory.getbasetemp() / "list.json"
    samples = [sample(text, {text: [text]}, answer=text) for text in texts]
    for ascii_only in (True, False):
        written = json.dumps(samples, indent=indent, ensure_ascii=ascii_only).encode()
        file.write_bytes(written)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(json_places, "_WINDOW", window)
            found = json_places.places(file)
        assert [json.loads(written[start:end]) for start, end in found] == samples


@given(texts=st.lists(_ANY_TEXT, min_size=1, max_size=5))
def test_lines_are_found(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> None:
    file = tmp_path_factory.getbasetemp() / "lines.jsonl"
    written = "\n \r\n".join(json.dumps(sample(text)) for text in texts).encode()
    file.write_bytes(b"\xef\xbb\xbf" + written)
    source = open_source(str(file))
    assert [source.record(index).id for index in range(len(source))] == texts


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is empty"),
        ("[]", "holds no sample"),
        ("hello", "begins with b'h'"),
        ('{\n"id": 1}', "its first line is no JSON"),
        ('[{"id": 1}', "byte 10 and after"),
        ('[{"id": 1},]', "byte 10 and after"),
        ("[1]", "an object was expected"),
        ('[{"id": }]', "Expecting value"),
        ("[{}] {}", "byte 3 and after"),
    ],
)
def test_a_file_that_is_no_json_is_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "data.json").write_text(text)
    with pytest.raises(InputError, match=r"data\.json") as error:
        open_source(str(tmp_path / "data.json"))
    assert says in str(error.value)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"id": 7}, "'7': malformed record .*conversations must be a list"),
        ({"conversations": [{"from": "human", "value": "q"}]}, r"sample 0.*the last question has no answer"),
        ({"conversations": [{"from": "gpt", "value": "a"}]}, "the last question has no answer"),
        ({"id": "x", "conversations": [{"from": "user", "value": "q"}]}, r"conversations\[0\] must be"),
        ({"conversations": [{"from": "human", "value": 3}]}, r"conversations\[0\] must be"),
        ({"conversations": ["q"]}, r"conversations\[0\] must be"),
        ({"conversations": 2 * [{"from": "human", "value": "q"}]}, r"conversations\[1\] is a second one from human"),
        (sample(question="a \ud800 b"), "its text has half a character"),
        (sample(image="\ud800.png"), "its image path has half a character"),
        (sample("\ud800"), r"data\.json, sample 0.*its id has half a character"),
        (sample(image="a.png") | {"images": ["b.png"]}, "leave one of them out"),
        (sample(image=3), "image must be a path"),
        (sample(image=[""]), "image must be a path"),
    ],
)
def test_a_malformed_record_is_named(tmp_path: Path, value: Any, says: str) -> None:
    source = open_source(str(write(tmp_path, [value])))
    with pytest.raises(SampleError, match=says) as error:
        source.record(0)
    assert error.value.reason == "malformed record"
    str(error.value).encode()  # it is written down as it is


@pytest.mark.parametrize("nothing", [None, []])
def test_an_empty_image_beside_images_is_none(tmp_path: Path, nothing: Any) -> None:
    value = sample() | {"image": nothing, "images": ["a.png"]}
    assert open_source(str(write(tmp_path, [value]))).record(0).images == ("a.png",)


def test_a_broken_line_spoils_no_other(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    broken = (b'{"id": \xff}', b'{"id": ' + b"[" * 100_000, b"x")
    file.write_bytes(b"\n".join([json.dumps(sample()).encode(), *broken, json.dumps(sample("c")).encode()]))
    source = open_source(str(file))
    assert source.record(len(source) - 1).id == "c"
    for index in range(1, 1 + len(broken)):
        with pytest.raises(SampleError, match=rf"data\.jsonl, sample {index}.*no JSON"):
            source.record(index)


def test_an_answer_in_front_is_left_out(tmp_path: Path) -> None:
    value = sample(image=None, question="q")
    value["conversations"].insert(0, {"from": "gpt", "value": "Hello!"})
    assert open_source(str(write(tmp_path, [value]))).record(0).turns == (Turn("q", "A cat."),)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("../secret.png", "image path leaves the folder"),
        ("a/../../secret.png", "image path leaves the folder"),
        ("/etc/passwd", "image path leaves the folder"),
        (".", "image path leaves the folder"),
        ("none.png", "missing image"),
        ("http://example.com/1.png", "missing image"),
        ("broken.png", "unreadable image"),
    ],
)
def test_a_bad_picture_is_named(tmp_path: Path, path: str, reason: str) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "broken.png").write_bytes(b"\x89PNG and no more")
    synthetic_image().save(tmp_path / "secret.png")
    source = open_source(str(write(tmp_path, [sample("x", path)])), str(folder))
    with pytest.raises(SampleError, match="Sample 'x'") as error:
        source.picture(source.record(0), 0)
    assert error.value.reason == reason
    copy = pickle.loads(pickle.dumps(error.value))
    assert (copy.id, copy.reason, str(copy)) == (error.value.id, reason, str(error.value))


def test_the_fingerprint_follows_the_content(tmp_path: Path) -> None:
    first = open_source(str(write(tmp_path, [sample("a")]))).fingerprint()
    assert open_source(str(write(tmp_path, [sample("a")]))).fingerprint() == first
    assert open_source(str(write(tmp_path, [sample("b")]))).fingerprint() != first


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("gs://bucket/train.json",), "dynllava data pack FILE gs://bucket/packed --images DIR"),
        (("{file}", "gs://bucket/images"), "dynllava data pack FILE gs://bucket/packed --images DIR"),
        (("{file}", "{file}/none"), "The image folder .* does not exist"),
        (("none.json",), r"none\.json does not exist"),
        (("{file}", None, "a:b"), r"takes no data\.adapter"),
        (("tfds:x", "images"), r"takes no data\.images"),
    ],
)
def test_what_cannot_be_opened(tmp_path: Path, options: tuple[Any, ...], says: str) -> None:
    file = write(tmp_path, [sample()])
    with pytest.raises(InputError, match=says):
        open_source(*[option and option.format(file=file) for option in options])
