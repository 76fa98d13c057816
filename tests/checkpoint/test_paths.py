"""Buckets: an address stays one, and a conversion runs from bucket to bucket and loads from there."""

import shutil
from pathlib import Path

import pytest
from etils import epath

import dynllava_jax as dl
from dynllava_jax.checkpoint import store
from dynllava_jax.checkpoint.paths import as_path
from dynllava_jax.convert.from_torch import convert
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
