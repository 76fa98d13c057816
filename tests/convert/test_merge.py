"""`dynllava convert merge`: a run of any kind becomes a model checkpoint, or one line says why not."""

import os
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from dynllava_jax.checkpoint import store
from dynllava_jax.checkpoint.load import load
from dynllava_jax.checkpoint.source import open_source
from dynllava_jax.cli.main import main
from dynllava_jax.config.presets import tiny
from dynllava_jax.convert.merge import merge
from dynllava_jax.errors import InputError
from dynllava_jax.nn.flat import flatten
from dynllava_jax.training.checkpoint import TrainingCheckpoints
from tests.checkpoint.buckets import simulate
from tests.checkpoint.test_store import random_leaves

CONFIG = tiny()
CARRIED = {"model.rotary.inv_freq": np.arange(4, dtype=np.float32)}
FILES = {"tokenizer.model": b"\0pieces", "vision_tower/config.json": b"{}"}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`init`, a model checkpoint in bfloat16, and `run`, which added its step to decoder and projector."""
    folder = tmp_path_factory.mktemp("merge")
    extras = store.Extras(FILES, {"layout": "official", "fresh": []})
    store.write(folder / "init", CONFIG, random_leaves("bfloat16"), carried=CARRIED.items(), extras=extras)
    values = flatten(load(folder / "init", dtype="float32"))
    with TrainingCheckpoints(folder / "run", CONFIG, init=folder / "init") as checkpoints:
        for step in (1, 2):
            params = {path: x + step for path, x in values.items() if path.startswith(("decoder/", "projector/"))}
            checkpoints.save_async(step, params, {"step": jnp.int32(step)}, {})
    return folder


def refused(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["convert", "merge", *argv]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    return line


@pytest.mark.parametrize(("where", "step"), [("run", 2), ("run/checkpoints/1", 1)])
def test_everything_arrives(made: Path, where: str, step: int, tmp_path: Path) -> None:
    seen: list[int] = []
    report = merge(made / where, tmp_path / "model", on_start=seen.append, on_part=lambda count: seen.append(-count))
    assert sum(seen) == 0
    assert (report.step, report.adapters, report.carried) == (step, 0, 1)
    assert report.src == str(made / "run" / "checkpoints" / str(step))
    source = open_source(made / where)
    read = {leaf: array for leaves in source.read(source.shapes.keys()) for leaf, array in leaves.items()}
    info = store.read_info(tmp_path / "model")
    written = {leaf: array for leaves in store.read_items(tmp_path / "model", info) for leaf, array in leaves.items()}
    assert written.keys() == read.keys()
    for leaf, array in written.items():
        assert array.dtype == read[leaf].dtype
        np.testing.assert_array_equal(array, read[leaf])
    assert report.leaves == len(written)
    assert report.nbytes == sum(array.nbytes for array in (*written.values(), *CARRIED.values()))
    assert info.config == CONFIG
    assert info.facts == {"layout": "official", "fresh": [], "run": report.src, "step": step}
    np.testing.assert_array_equal(store.read_carried(tmp_path / "model", info)["model.rotary.inv_freq"], range(4))
    assert {name: (tmp_path / "model" / store.FILES / name).read_bytes() for name in FILES} == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_run_that_trained_everything_keeps_what_is_carried(
    made: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    init = shutil.copytree(made / "init", tmp_path / "init")
    values = flatten(load(init, dtype="float32"))
    with TrainingCheckpoints(tmp_path / "run", CONFIG, init=init) as checkpoints:
        checkpoints.save_async(1, values, {"step": jnp.int32(1)}, {})
    assert merge(tmp_path / "run", tmp_path / "model").carried == 1
    assert "left out" not in caplog.text
    shutil.rmtree(init)  # nothing else is taken from there
    assert merge(tmp_path / "run", tmp_path / "alone").carried == 0
    assert "what PyTorch's checkpoint had beside the model is left out" in caplog.text


def test_the_command(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "merge", str(made / "run"), str(tmp_path / "model"), "--dtype", "bfloat16"]) == 0
    out = capsys.readouterr().out
    assert "from step 2 of a training run" in out
    assert "1 carried for export" in out
    found, wanted = load(tmp_path / "model"), load(made / "run", dtype="bfloat16")
    for path, value in flatten(found).items():
        assert value.dtype == jnp.bfloat16
        np.testing.assert_array_equal(value, flatten(wanted)[path])


def test_relative_folders(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made)
    out = tmp_path / "model"
    assert merge(Path("run"), Path(os.path.relpath(out))).step == 2
    assert store.is_checkpoint(out)


def test_onto_a_bucket(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    simulate(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)
    here = merge(made / "run", tmp_path / "model")
    assert main(["convert", "merge", str(made / "run"), "gs://bucket/model"]) == 0
    there = store.read_info(tmp_path / "bucket" / "model")
    assert there.content_hash == store.read_info(Path(here.dst)).content_hash
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bucket", "model"]  # no folder called gs:


def test_what_is_refused(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dst = str(tmp_path / "model")
    assert "is a model checkpoint already" in refused([str(made / "init"), dst], capsys)
    assert "it does not exist" in refused([str(tmp_path / "nowhere"), dst], capsys)
    assert "exists already and is not overwritten" in refused([str(made / "run"), str(made)], capsys)
    assert "--dtype" in refused([str(made / "run"), dst, "--dtype", "int8"], capsys)
    (tmp_path / "file").touch()
    assert "cannot be written" in refused([str(made / "run"), str(tmp_path / "file" / "model")], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_fails_half_way_leaves_nothing(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = {path: x for path, x in flatten(load(made / "init", dtype="float32")).items() if path.startswith("dec")}
    values["decoder/embedding"] = values["decoder/embedding"].at[0, 0].set(1e6)
    with TrainingCheckpoints(tmp_path / "run", CONFIG, init=made / "init") as checkpoints:
        checkpoints.save_async(1, values, {"step": jnp.int32(1)}, {})
    line = refused([str(tmp_path / "run"), str(tmp_path / "model"), "--dtype", "float16"], capsys)
    assert "decoder/embedding holds values beyond float16" in line
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_of_something_else(made: Path, tmp_path: Path) -> None:
    values = {path: x for path, x in flatten(load(made / "init")).items() if path.startswith("decoder/")}
    with TrainingCheckpoints(tmp_path / "run", CONFIG, init=made / "init") as checkpoints:
        checkpoints.save_async(1, values | {"decoder/bonus": jnp.zeros(3)}, {"step": jnp.int32(1)}, {})
    with pytest.raises(InputError, match="decoder/bonus is not part of the model"):
        merge(tmp_path / "run", tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
