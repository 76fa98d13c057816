"""`kill -9` in the middle: what lies there does not load, and the same command goes on without redoing what is done."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dynllava_jax.checkpoint import store
from dynllava_jax.cli.main import main
from dynllava_jax.convert.from_torch import convert
from dynllava_jax.convert.read_torch import TorchWeights
from dynllava_jax.convert.safetensors_writer import JOURNAL, SafetensorsWriter
from dynllava_jax.convert.to_torch import export
from tests import golden_files
from tests.convert.test_to_torch import content

SRC = golden_files.ROOT / "checkpoint"


def kill(code: str, *arguments: str) -> None:
    """Runs a program and kills it for good when it says so."""
    argv = [sys.executable, "-c", code, *arguments]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        said = process.stdout.readline()
        process.kill()
        assert said == "now\n", process.stderr.read()
        assert process.wait() == -9


STOP = """
import sys, time
left = {count}
def stop(nbytes):
    global left
    left -= 1
    if left == 0:
        print("now", flush=True)
        time.sleep(600)
"""

CONVERT = """
from dynllava_jax.convert.from_torch import convert
convert(sys.argv[1], sys.argv[2], on_item=stop)
"""

EXPORT = """
from dynllava_jax.convert.to_torch import export
export(sys.argv[1], sys.argv[2], layout="official", on_tensor=stop)
"""


def refused(path: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["inspect", str(path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


def recorded(monkeypatch: pytest.MonkeyPatch, kind: type, method: str) -> list[str]:
    """The names that a method is called with from here on."""
    names: list[str] = []
    original: Callable[..., object] = getattr(kind, method)

    def watched(self: object, name: str, *more: object) -> object:
        names.append(name)
        return original(self, name, *more)

    monkeypatch.setattr(kind, method, watched)
    return names


@pytest.mark.slow
def test_both_directions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model, unfinished = tmp_path / "model", tmp_path / "model.tmp"
    kill(STOP.format(count=4) + CONVERT, str(SRC), str(model))
    assert "its conversion did not finish; run the same dynllava convert command again" in refused(model, capsys)
    assert "is no model checkpoint" in refused(unfinished, capsys)
    finished = json.loads((unfinished / "hashes.json").read_text())["items"]
    assert {"decoder_000", "decoder_001"} <= finished.keys()
    assert "head" not in finished
    stamps = {path: path.stat().st_mtime_ns for name in finished for path in (unfinished / name).rglob("*")}
    with monkeypatch.context() as patch:
        read = recorded(patch, TorchWeights, "read")
        convert(SRC, model)
    assert "lm_head.weight" in read
    assert not [name for name in read if name.startswith(("model.layers.0.", "model.layers.1."))]
    assert all((model / path.relative_to(unfinished)).stat().st_mtime_ns == was for path, was in stamps.items())
    convert(SRC, tmp_path / "other")
    assert store.read_info(model).content_hash == store.read_info(tmp_path / "other").content_hash

    back = tmp_path / "back"
    kill(STOP.format(count=40) + EXPORT, str(model), str(back))
    assert not back.exists()
    done = (tmp_path / "back.tmp" / JOURNAL).read_text().split()
    assert len(done) >= 39
    written = recorded(monkeypatch, SafetensorsWriter, "put")
    report = export(model, back, layout="official")
    assert report.resumed == len(done)
    assert not {*written} & {*done}
    assert content(back) == content(SRC)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["back", "model", "other"]
