"""Packed shards: the same samples as their source, whatever happened on the way."""

import contextlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from etils import epath

from dynllava_jax.config.data import DataConfig
from dynllava_jax.data import manifest as manifests
from dynllava_jax.data import pack as packing
from dynllava_jax.data import shard_writer
from dynllava_jax.data.dataset import join
from dynllava_jax.data.json_source import JsonSource
from dynllava_jax.data.pack import pack
from dynllava_jax.data.shards import ShardSource
from dynllava_jax.data.source import SampleError, Source, open_source
from dynllava_jax.errors import CheckError, InputError
from dynllava_jax.testing import synthetic_image
from tests.checkpoint.buckets import simulate
from tests.data.memory_source import preparation

SAMPLES, SHARD = 12, 2000
"""Pictures of 500 to 5000 bytes: a few samples a shard."""


class Killed(BaseException):
    """What no code catches."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve samples: 3 has no picture, 5 two, 7 a missing one, 9 a broken one."""
    folder = tmp_path_factory.mktemp("data")
    samples = []
    for number in range(SAMPLES):
        images = {3: [], 5: ["4.jpg", "5.png"], 7: ["none.jpg"]}.get(number, [f"{number}.jpg"])
        for image in images:
            if image != "none.jpg":
                synthetic_image(number, 40 + number, 30).save(folder / image)
        turns = [{"from": "human", "value": "<image>" * len(images) + "é?"}, {"from": "gpt", "value": f"a{number}"}]
        samples.append({"id": f"id{number}", "image": images, "conversations": turns})
    (folder / "9.jpg").write_bytes((folder / "9.jpg").read_bytes()[:300])
    (folder / "data.json").write_text(json.dumps(samples))
    return folder


@pytest.fixture
def source(data: Path) -> JsonSource:
    return JsonSource.open(str(data / "data.json"), None)


def content(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(path.iterdir())}


def test_shards_hold_what_the_source_holds(data: Path, source: JsonSource, tmp_path: Path) -> None:
    made = pack(source, str(tmp_path / "out"), shard_bytes=SHARD)
    assert made.left_out == {"missing image": ("id7",), "unreadable image": ("id9",)}
    assert (made.samples, made.read, made.bad, len(made.shards) > 2) == (10, 12, 2, True)
    packed: Source = open_source(str(tmp_path / "out"))
    good = [number for number in range(SAMPLES) if number not in (7, 9)]
    for opened in (packed, pickle.loads(pickle.dumps(packed))):
        assert isinstance(opened, Source)
        assert len(opened) == len(good)
        for index, number in enumerate(good):
            ours, theirs = opened.record(index), source.record(number)
            assert (ours.id, ours.turns, len(ours.images)) == (theirs.id, theirs.turns, len(theirs.images))
            for place in range(len(ours.images)):
                np.testing.assert_array_equal(opened.picture(ours, place), source.picture(theirs, place))
    record = packed.record(0)
    shards = ShardSource.open(str(tmp_path / "out"))
    assert shards.encoded(record, 0) == (data / "0.jpg").read_bytes()
    assert shards.damaged() == ()


def test_training_is_told_what_was_left_out(source: JsonSource, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    pack(source, out)
    report = join([ShardSource.open(out)], preparation(), DataConfig(source=out, workers=0), [tmp_path]).report
    assert (report.samples, str(report).endswith("; 2 more were bad when they were packed")) == (10, True)


def test_a_second_process_in_a_folder_is_refused(source: JsonSource, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def again(total: int, done: int) -> None:
        with pytest.raises(InputError, match=rf"^{out} is being packed by another process; wait until that has ended"):
            pack(source, str(out), shard_bytes=SHARD)

    made = pack(source, str(out), shard_bytes=SHARD, on_start=again)
    assert sorted(path.name for path in out.iterdir()) == [*(shard.file for shard in made.shards), "manifest.json"]
    assert ShardSource.open(str(out)).damaged() == ()


def test_without_the_library_no_shard_is_called_damaged(
    source: JsonSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack(source, str(tmp_path / "out"), shard_bytes=SHARD)
    monkeypatch.setitem(sys.modules, "array_record.python.array_record_module", None)
    with pytest.raises(InputError, match=r"^Packed shards need the extra train .*pip install 'dynllava_jax\[train\]'"):
        ShardSource.open(str(tmp_path / "out"))


def test_a_short_side_shrinks_what_is_larger(source: JsonSource, tmp_path: Path) -> None:
    pack(source, str(tmp_path / "small"), short_side=20)
    small = ShardSource.open(str(tmp_path / "small"))
    record = small.record(0)
    assert small.picture(record, 0).size == (27, 20)
    assert small.encoded(record, 0).startswith(b"\xff\xd8")
    pack(source, str(tmp_path / "kept"), short_side=30)
    kept = ShardSource.open(str(tmp_path / "kept"))
    assert kept.encoded(kept.record(0), 0) == source.encoded(source.record(0), 0)


def test_processes_make_the_same_folder(source: JsonSource, tmp_path: Path) -> None:
    counts: list[int] = []
    alone = pack(source, str(tmp_path / "a"), shard_bytes=SHARD, on_sample=lambda: counts.append(1))
    together = pack(source, str(tmp_path / "b"), shard_bytes=SHARD, workers=2)
    assert len(counts) == SAMPLES
    assert alone == together
    assert content(tmp_path / "a") == content(tmp_path / "b")


@pytest.mark.parametrize("place", ["rename", "note", "noted", "sample"])
@pytest.mark.parametrize("count", range(0, 8, 2))
def test_killed_at_any_point_it_goes_on(
    source: JsonSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, count: int
) -> None:
    whole = pack(source, str(tmp_path / "whole"), shard_bytes=SHARD)
    left = count

    def dies(action: Callable[..., Any], after: bool = False) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            nonlocal left
            left -= 1
            result = action(*args) if after or left >= 0 else None
            if left < 0:
                raise Killed
            return result

        return run

    with monkeypatch.context() as patch:
        if place == "rename":
            patch.setattr(shard_writer.os, "replace", dies(os.replace))
        elif place == "sample":
            patch.setattr(shard_writer.ShardWriter, "add", dies(shard_writer.ShardWriter.add))
        else:
            patch.setattr(manifests.Manifest, "write", dies(manifests.Manifest.write, after=place == "noted"))
        # What a kill leaves: nothing is tidied up.
        patch.setattr(shard_writer.ShardWriter, "close", lambda self: None)
        try:
            pack(source, str(tmp_path / "out"), shard_bytes=SHARD)
        except Killed:
            if not (tmp_path / "out" / "manifest.json").exists():
                with pytest.raises(InputError, match=r"not finished|no folder"):
                    open_source(str(tmp_path / "out"))
    starts: list[tuple[int, int]] = []
    again = pack(source, str(tmp_path / "out"), shard_bytes=SHARD, on_start=lambda *args: starts.append(args))
    assert again == whole
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert all(total == SAMPLES and done <= SAMPLES for total, done in starts)


def test_a_folder_that_cannot_be_written_is_named(
    source: JsonSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        """An ArrayRecordWriter that finds out when it is closed, as often as it is."""

        def __init__(self, file: str, options: str) -> None:
            Path(file).write_bytes(b"half a shard")

        def write(self, record: bytes) -> None: ...

        def close(self) -> None:
            raise RuntimeError("write() failed: No space left on device; writing a file; at byte 12")

    with monkeypatch.context() as patch:
        patch.setattr(shard_writer, "array_record", lambda: SimpleNamespace(ArrayRecordWriter=Full))
        with pytest.raises(InputError, match=r"full cannot be written: write\(\) failed: No space left on device; see"):
            pack(source, str(tmp_path / "full"), shard_bytes=SHARD)
    assert [file.name for file in (tmp_path / "full").iterdir()] == ["unfinished.json"]
    assert pack(source, str(tmp_path / "full"), shard_bytes=SHARD).samples == SAMPLES - 2
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file cannot be written: File exists; see to it"):
        pack(source, str(tmp_path / "file"))


def test_killed_for_real(data: Path, source: JsonSource, tmp_path: Path) -> None:
    code = (
        "import time\nfrom dynllava_jax.data.json_source import JsonSource\nfrom dynllava_jax.data.pack import pack\n"
        f"pack(JsonSource.open({str(data / 'data.json')!r}, None), {str(tmp_path / 'out')!r}, shard_bytes={SHARD},"
        "on_sample=lambda: time.sleep(0.2))"
    )
    child = subprocess.Popen([sys.executable, "-c", code])
    while not (tmp_path / "out" / "00000.arrayrecord").exists():
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    pack(source, str(tmp_path / "out"), shard_bytes=SHARD)
    pack(source, str(tmp_path / "whole"), shard_bytes=SHARD)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


def test_a_source_whose_name_is_no_utf8(data: Path, tmp_path: Path) -> None:
    file = tmp_path / "caf\udce9.json"
    try:
        file.write_bytes((data / "data.json").read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    made = pack(JsonSource.open(str(file), str(data)), str(tmp_path / "out"))
    found = open_source(str(tmp_path / "out"))
    assert isinstance(found, ShardSource)
    assert found.manifest == made
    assert made.request["source"] == str(file)


def test_a_finished_folder_is_left_alone_and_other_requests_are_refused(
    data: Path, source: JsonSource, tmp_path: Path
) -> None:
    out = str(tmp_path / "out")
    pack(source, out)
    before = content(tmp_path / "out")
    starts: list[tuple[int, int]] = []
    pack(source, out, on_start=lambda *args: starts.append(args))
    assert (starts, content(tmp_path / "out")) == ([], before)
    with pytest.raises(InputError, match="with short_side None, not 20"):
        pack(source, out, short_side=20)
    (data / "other.json").write_text((data / "data.json").read_text().replace("a1", "b1"))
    with pytest.raises(InputError, match=r"holds shards of .*data\.json with fingerprint"):
        pack(JsonSource.open(str(data / "other.json"), None), out)
    with pytest.raises(InputError, match="is not empty"):
        pack(source, str(data))


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"short_side": 0}, "short_side must be a whole number, 1 or more, not 0"),
        ({"short_side": 33.5}, r"short_side must be a whole number, 1 or more, not 33\.5"),
        ({"shard_bytes": 0}, "shard_bytes must be a whole number, 1 or more, not 0"),
        ({"shard_bytes": -1}, "shard_bytes must be a whole number, 1 or more, not -1"),
        ({"workers": -1}, "workers must be a whole number, 0 or more, not -1"),
    ],
)
def test_numbers_that_are_none_are_refused(
    wrong: dict[str, Any], says: str, source: JsonSource, tmp_path: Path, unchecked: None
) -> None:
    with pytest.raises(InputError, match=says):
        pack(source, str(tmp_path / "out"), **wrong)
    assert not (tmp_path / "out").exists()


def test_nothing_good_is_no_data_set(data: Path, tmp_path: Path) -> None:
    bad = json.loads((data / "data.json").read_text())[7]
    (data / "bad.json").write_text(json.dumps([bad]))
    with pytest.raises(InputError, match=r"No sample of .*bad\.json can be packed: 1 missing image \(id7\)"):
        pack(JsonSource.open(str(data / "bad.json"), None), str(tmp_path / "out"))


def test_a_shard_that_is_cut_short_while_it_is_open(source: JsonSource, tmp_path: Path) -> None:
    (shard,) = pack(source, str(tmp_path / "out")).shards
    opened = ShardSource.open(str(tmp_path / "out"))
    before = [opened.record(index) for index in range(len(opened))]
    os.truncate(tmp_path / "out" / shard.file, shard.bytes // 3)
    for index, record in enumerate(before):  # what the library still has is right
        with contextlib.suppress(SampleError):
            assert opened.record(index) == record
    with pytest.raises(SampleError, match=r"00000\.arrayrecord"):
        pickle.loads(pickle.dumps(opened)).record(9)  # as another process opens it


def test_damage_is_named(source: JsonSource, tmp_path: Path) -> None:
    out = tmp_path / "out"
    made = pack(source, str(out))
    (shard,) = made.shards
    file = out / shard.file
    whole = file.read_bytes()
    text = whole.find(b'"id0"')
    for place, failing in ((text, "record"), (whole.find(b"\xff\xd8\xff") + 200, "picture")):
        file.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        opened = ShardSource.open(str(out))
        assert opened.damaged() == (shard.file,)
        with pytest.raises(SampleError, match=r"00000\.arrayrecord") as error:
            opened.record(0) if failing == "record" else opened.picture(opened.record(0), 0)
        assert error.value.reason == "damaged shard"
    for change, says in (
        (lambda: file.write_bytes(whole[:-1]), r"00000\.arrayrecord has \d+ bytes instead of"),
        (file.unlink, r"00000\.arrayrecord is missing"),
        (lambda: (out / "manifest.json").write_text("{}"), "is no manifest"),
        (lambda: (out / "manifest.json").write_text('{"format": "x", "version": 9}'), "is 'x' version 9"),
        (lambda: shutil.rmtree(out), "no JSON file and no folder with"),
    ):
        change()
        with pytest.raises(InputError, match=says):
            open_source(str(out))


def test_onto_a_bucket(source: JsonSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder that counts as remote: shards are made elsewhere and copied, notes are written as they are."""
    monkeypatch.setattr(shard_writer, "is_remote", lambda path: True)
    monkeypatch.setattr(manifests, "is_remote", lambda path: True)
    made = pack(source, str(tmp_path / "out"), shard_bytes=SHARD)
    assert made == pack(source, str(tmp_path / "out"), shard_bytes=SHARD)
    assert sorted(content(tmp_path / "out")) == [*(shard.file for shard in made.shards), "manifest.json"]
    assert len(ShardSource.open(str(tmp_path / "out"))) == 10
    monkeypatch.setattr(manifests.importlib.util, "find_spec", lambda name: name == "gcsfs" or None)
    assert isinstance(manifests.folder("gs://bucket/packed"), epath.Path)
    monkeypatch.setattr(manifests.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"gs://bucket/packed needs gcsfs; pip install"):
        open_source("gs://bucket/packed")


def test_a_bucket_has_no_empty_folder(source: JsonSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked into before anything lay there, it was not found."""
    simulate(tmp_path, monkeypatch)
    made = pack(source, "gs://bucket/out", shard_bytes=SHARD)
    assert made == pack(source, "gs://bucket/out", shard_bytes=SHARD)
    assert made == pack(source, str(tmp_path / "out"), shard_bytes=SHARD)
    assert content(tmp_path / "bucket" / "out") == content(tmp_path / "out")
    assert len(ShardSource.open("gs://bucket/out")) == 10


@pytest.mark.slow
def test_a_killed_worker_is_said(source: JsonSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_Prepare", lambda *args: _die)
    with pytest.raises(CheckError, match="A worker process was killed"):
        pack(source, str(tmp_path / "out"), workers=1)


def _die(index: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)
