"""Buckets: an address stays one, and a conversion runs from bucket to bucket and loads from there."""

import dataclasses
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from etils import epath
from etils.epath import backend

import dynllava_jax as dl
from dynllava_jax.checkpoint import store
from dynllava_jax.checkpoint.paths import as_path
from dynllava_jax.checkpoint.source import open_source
from dynllava_jax.cli.main import main
from dynllava_jax.convert import space, to_torch, unfinished
from dynllava_jax.convert.from_torch import convert
from dynllava_jax.convert.safetensors_file import SafetensorsFile
from dynllava_jax.convert.safetensors_writer import SafetensorsWriter
from dynllava_jax.convert.to_torch import export
from dynllava_jax.errors import InputError
from tests import golden_files
from tests.checkpoint.buckets import simulate
from tests.convert.test_to_torch import content

GOLDEN = golden_files.ROOT


def test_an_address_is_not_mangled() -> None:
    assert str(as_path("gs://bucket/a/b")) == "gs://bucket/a/b"
    assert isinstance(as_path("gs://bucket/a"), epath.Path)
    assert as_path("a/b") == Path("a/b")


@pytest.mark.parametrize("address", ["https://huggingface.co/org/model", "ftp://host/model", "file:///model"])
def test_an_address_that_is_no_buckets_is_refused(address: str) -> None:
    """They ended with `KeyError: 'https://'`."""
    for use in (dl.load, open_source, as_path):
        with pytest.raises(InputError, match=f"{address}: nothing is read at such addresses; give a path, or gs://"):
            use(address)


def test_an_empty_name_is_not_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for use in (dl.load, open_source, as_path, lambda name: convert(name, "dst"), lambda name: convert("src", name)):
        with pytest.raises(InputError, match="is empty; name something"):
            use("")
    assert as_path(Path()) == Path()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("wrong", [None, 5, b"folder"])
def test_what_is_no_path_is_refused(wrong: Any) -> None:
    for use in (open_source, as_path, lambda name: convert(name, "dst"), lambda name: convert("src", name)):
        with pytest.raises(InputError, match="must be str or PathLike, not "):
            use(wrong)


@pytest.mark.parametrize(("wrong", "reason"), [("x" * 300, "File name too long"), ("a\0b", ".*embedded null .*")])
def test_what_can_be_no_files_name_is_refused(wrong: str, reason: str) -> None:
    for use in (dl.load, open_source, lambda name: convert(name, "dst"), lambda name: convert("src", name)):
        with pytest.raises(InputError, match=rf"is nothing that a file can be called \({reason}\); give another"):
            use(wrong)


def test_a_file_where_a_folder_is_made_is_in_the_way(tmp_path: Path) -> None:
    convert(GOLDEN / "checkpoint", tmp_path / "model", vision_tower=GOLDEN / "vision_tower")
    (tmp_path / "dst.tmp").write_text("somebody's")
    for write in (
        lambda dst: convert(GOLDEN / "checkpoint", dst, vision_tower=GOLDEN / "vision_tower"),
        lambda dst: export(tmp_path / "model", dst, layout="official"),
    ):
        with pytest.raises(InputError, match=r"dst\.tmp is in the way and is no unfinished .*; remove it"):
            write(tmp_path / "dst")
    assert (tmp_path / "dst.tmp").read_text() == "somebody's"


def test_the_current_folder_has_no_name_to_be_unfinished_under(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convert(GOLDEN / "checkpoint", tmp_path / "model", vision_tower=GOLDEN / "vision_tower")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for write in (
        lambda dst: convert(GOLDEN / "checkpoint", dst, vision_tower=GOLDEN / "vision_tower"),
        lambda dst: export(tmp_path / "model", dst, layout="official"),
    ):
        for dst in (".", "new/.."):
            with pytest.raises(InputError, match=r"DST must be a folder's own name, not '.*': while it is written"):
                write(dst)
    assert list(Path().iterdir()) == []


def test_a_name_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert as_path("~/model") == tmp_path / "model"
    assert str(as_path("gs://bucket/~")) == "gs://bucket/~"
    assert as_path("a/~") == Path("a/~")
    with pytest.raises(InputError, match="nobody here is called ~nobody_here; give another path"):
        as_path("~nobody_here/model")
    convert(GOLDEN / "checkpoint", "~/model", vision_tower=GOLDEN / "vision_tower")
    assert open_source("~/model").config == open_source(tmp_path / "model").config


@pytest.mark.slow
def test_from_bucket_to_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(tmp_path, monkeypatch)
    (tmp_path / "bucket").mkdir()
    shutil.copytree(GOLDEN / "checkpoint", tmp_path / "bucket" / "src")
    shutil.copytree(GOLDEN / "vision_tower", tmp_path / "bucket" / "vision_tower")
    convert("gs://bucket/src", "gs://bucket/model")
    assert store.is_checkpoint(tmp_path / "bucket" / "model")
    convert(GOLDEN / "checkpoint", tmp_path / "local")
    assert (
        store.read_info(as_path("gs://bucket/model")).content_hash == store.read_info(tmp_path / "local").content_hash
    )
    with pytest.raises(InputError, match="gs://bucket/model exists already"):
        convert("gs://bucket/src", "gs://bucket/model")
    assert dl.load("gs://bucket/model").config == dl.load(tmp_path / "local").config
    export("gs://bucket/model", "gs://bucket/back", layout="official", shard_bytes=400_000)
    assert content(tmp_path / "bucket" / "back") == content(GOLDEN / "checkpoint")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The golden checkpoint, converted; beside it lies the bucket."""
    simulate(tmp_path, monkeypatch)
    (tmp_path / "bucket").mkdir()
    convert(GOLDEN / "checkpoint", tmp_path / "model")
    return tmp_path / "model"


def test_an_export_to_a_bucket_needs_room_for_one_file(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever order a source is read in; a training run gives a parameter of all layers at once."""
    opened = open_source(model)

    def read(wanted: Collection[str]) -> Iterator[dict[str, np.ndarray]]:
        leaves = {name: leaf for part in opened.read(wanted) for name, leaf in part.items()}
        for name in sorted(leaves, reverse=True):
            yield {name: leaves[name]}

    begun: set[str] = set()
    put = SafetensorsWriter.put

    def watched(writer: SafetensorsWriter, name: str, tensor: np.ndarray) -> None:
        begun.add(writer.file_of(name))
        assert len([file for file in begun if (bucket / file).exists()]) >= len(begun) - 1
        put(writer, name, tensor)

    bucket = model.parent / "bucket" / "back"
    monkeypatch.setattr(to_torch, "open_source", lambda src: dataclasses.replace(opened, read=read))
    monkeypatch.setattr(SafetensorsWriter, "put", watched)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: SimpleNamespace(free=(64 << 20) + 400_000))
    with pytest.raises(InputError, match="are to be written; set TMPDIR to a folder on a disk that has more"):
        export(model, "gs://bucket/back", layout="official", shard_bytes=500_000)
    assert not bucket.exists()
    export(model, "gs://bucket/back", layout="official", shard_bytes=400_000)
    assert len(begun) > 3
    assert content(bucket) == content(GOLDEN / "checkpoint")
    assert {path.name for path in bucket.glob("*.txt")} == set()


def test_an_export_to_a_bucket_that_fails_leaves_nothing(model: Path) -> None:
    array = next(path for path in (model / "decoder_003").rglob("d/*") if path.is_file())
    array.write_bytes(bytes(len(array.read_bytes())))
    with pytest.raises(InputError, match="decoder_003"):
        export(model, "gs://bucket/back", layout="official", shard_bytes=200_000)
    assert list((model.parent / "bucket").iterdir()) == []


def test_a_killed_export_to_a_bucket_goes_on(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(nbytes: int) -> None:
        if len(list(bucket.glob("*.safetensors"))) == 3:
            raise KeyboardInterrupt

    bucket = model.parent / "bucket" / "back"
    with monkeypatch.context() as patch:
        patch.setattr(unfinished, "remove_tree", lambda folder: None)  # as a kill does: nothing is cleared
        with pytest.raises(KeyboardInterrupt):
            export(model, "gs://bucket/back", layout="official", shard_bytes=200_000, on_tensor=stop)
    assert not (bucket / "config.json").exists()
    with pytest.raises(InputError, match=r"has no config\.json"):
        convert("gs://bucket/back", model.parent / "again")
    stamps = {path: path.stat().st_mtime_ns for path in bucket.glob("*.safetensors")}
    report = export(model, "gs://bucket/back", layout="official", shard_bytes=200_000)
    assert report.resumed == sum(len(content_of(path)) for path in stamps)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in stamps.items())
    assert content(bucket) == content(GOLDEN / "checkpoint")
    with pytest.raises(InputError, match="exists already"):
        export(model, "gs://bucket/back", layout="official")


def test_what_is_not_an_unfinished_export_is_not_removed(model: Path) -> None:
    other = model.parent / "bucket" / "back"
    other.mkdir()
    (other / "hashes.json").write_text("{}")  # of a conversion into a model checkpoint
    with pytest.raises(InputError, match="exists already"):
        export(model, "gs://bucket/back", layout="official")
    assert [path.name for path in other.iterdir()] == ["hashes.json"]


def content_of(file: Path) -> dict[str, object]:
    return dict(SafetensorsFile(file).entries)


def test_a_bucket_that_cannot_be_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: object, path: object) -> bool:
        raise RuntimeError("Cannot connect\nto host")

    monkeypatch.setattr(backend._FileSystemSpecBackend, "exists", fail)
    src, model = str(GOLDEN / "checkpoint"), str(tmp_path / "model")
    for arguments in (
        ["convert", "from-torch", "gs://bucket/x", model],
        ["convert", "from-torch", src, "gs://bucket/x"],
        ["convert", "to-torch", "gs://bucket/x", model, "--layout", "official"],
        ["convert", "to-torch", src, "gs://bucket/x", "--layout", "official"],
        ["inspect", "gs://bucket/x"],
        ["flops", "--model", "gs://bucket/x"],
    ):
        assert main(arguments) == 2
        error = capsys.readouterr().err
        assert "gs://bucket/x cannot be reached (Cannot connect to host); look at the address, the network" in error
        assert error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
