"""Lengths are measured once, kept beside the source, and measured anew when anything changes."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dynllava_jax.data import lengths
from dynllava_jax.data.lengths import index_folder, sample_lengths
from dynllava_jax.errors import InputError
from tests.data.memory_source import IMAGE_TOKENS, MemorySource, preparation

_SOURCE = MemorySource(images=(0, 1, 2, 1), words=(3, 5, 0, 400))


def _no_measuring(*args: object) -> None:
    raise AssertionError("measured again")


def test_lengths_are_those_of_the_samples(tmp_path: Path) -> None:
    found = sample_lengths(_SOURCE, preparation(), tmp_path, workers=0)
    sample, uncut = preparation().sample(_SOURCE.record(1))
    assert found.image_counts.tolist() == [0, 1, 0, 1]
    assert found.lengths[1] == sample.length == uncut == found.uncut[1]
    assert int((sample.kind == 2).sum()) == IMAGE_TOKENS
    assert found.lengths[3] == 256 < found.uncut[3]
    assert (found.lengths[2], found.uncut[2]) == (0, 0)
    assert {index: (error.id, error.reason) for index, error in found.failures.items()} == {
        2: ("memory-2", "malformed record")
    }


def test_the_index_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = sample_lengths(_SOURCE, preparation(), tmp_path, workers=0)
    monkeypatch.setattr(lengths, "_measure", _no_measuring)
    again = sample_lengths(_SOURCE, preparation(), tmp_path, workers=0)
    for name in ("lengths", "uncut", "image_counts"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))
    assert {index: str(error) for index, error in again.failures.items()} == {2: str(found.failures[2])}
    assert again.key == found.key


def test_whatever_changes_a_length_needs_another_index(tmp_path: Path) -> None:
    ways = [
        (_SOURCE, preparation()),
        (MemorySource(images=(0, 1, 2, 1), words=(3, 5, 1, 400)), preparation()),
        (_SOURCE, preparation(128)),
        (_SOURCE, preparation(truncate=False)),
    ]
    keys = {sample_lengths(source, prepared, tmp_path, workers=0).key for source, prepared in ways}
    assert len(keys) == len(list(tmp_path.iterdir())) == len(ways)


def _with(content: bytes, place: int, byte: int) -> bytes:
    return content[:place] + bytes([byte]) + content[place + 1 :]


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda content: content[:-100], id="cut"),
        pytest.param(lambda content: b"", id="empty"),  # what a power cut may leave of a new file
        pytest.param(lambda content: _with(content, content.index(b"table.npy") + 29, 7), id="compressed"),
        pytest.param(lambda content: _with(content, content.index(b"PK\1\2") + 8, 1), id="encrypted"),
    ],
)
def test_a_damaged_index_is_made_anew(
    damage: Callable[[bytes], bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    found = sample_lengths(_SOURCE, preparation(), tmp_path, workers=0)
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    with caplog.at_level(logging.WARNING):
        again = sample_lengths(_SOURCE, preparation(), tmp_path, workers=0)
    assert "is made anew" in caplog.text
    np.testing.assert_array_equal(again.lengths, found.lengths)
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_cannot_be_written_is_named_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(lengths, "_measure", _no_measuring)
    with pytest.raises(InputError, match=r"cannot be written to .*file/below .*set data.index"):
        sample_lengths(_SOURCE, preparation(), tmp_path / "file" / "below", workers=0)


def test_an_index_that_cannot_be_written_after_the_work_is_named_too(tmp_path: Path) -> None:
    sample_lengths(_SOURCE, preparation(), tmp_path, workers=0)
    (file,) = tmp_path.iterdir()
    file.unlink()
    file.mkdir()
    with pytest.raises(InputError, match=r"cannot be written to .*set data.index"):
        sample_lengths(_SOURCE, preparation(), tmp_path, workers=0)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.slow
def test_worker_processes_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lengths, "_WORTH_A_PROCESS", 1)
    here, there = (sample_lengths(_SOURCE, preparation(), tmp_path / str(count), workers=count) for count in (0, 1))
    np.testing.assert_array_equal(here.lengths, there.lengths)
    assert list(map(str, here.failures.values())) == list(map(str, there.failures.values()))


def test_where_the_index_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert str(index_folder("data/llava.json", None)) == "data"
    assert str(index_folder("data/packed/", None)) == "data"
    assert str(index_folder("tfds:vqa:train", None)) == str(tmp_path / "dynllava_jax")
    assert str(index_folder("data/packed", "here")) == "here"
