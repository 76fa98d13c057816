"""Bad input gets one clear line and status 2, before any device work."""

import json
import logging
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from dynllava_jax.cli.main import main
from tests.golden_files import ROOT

pytestmark = pytest.mark.usefixtures("one_load")


class Code:
    """What a hostile pickle holds."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch executed",)


def bad_line(argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("dynllava: error: ")]
    assert len(lines) == 1
    assert "Traceback" not in err
    return lines[0]


def question(checkpoint: Path | str, *more: str) -> list[str]:
    return ["generate", "--model", str(checkpoint), "--question", "What?", *more]


def pictures(folder: Path) -> dict[str, tuple[str, str]]:
    """Bad pictures: file name, and a word that the message must hold."""
    Image.new("RGB", (40, 30)).save(folder / "whole.jpg")
    (folder / "cut.jpg").write_bytes((folder / "whole.jpg").read_bytes()[:400])
    (folder / "text.jpg").write_text("no picture")
    # The header of a 60000 × 60000 bitmap and nothing else.
    Image.new("1", (8, 8)).save(folder / "bomb.png")
    data = bytearray((folder / "bomb.png").read_bytes())
    data[16:24] = (60000).to_bytes(4, "big") * 2
    import zlib

    data[29:33] = zlib.crc32(bytes(data[12:29])).to_bytes(4, "big")
    (folder / "bomb.png").write_bytes(bytes(data))
    return {
        "missing": ("nowhere.jpg", "does not exist"),
        "truncated": ("cut.jpg", "cut.jpg"),
        "text": ("text.jpg", "format"),
        "bomb": ("bomb.png", "more pixels"),
        "folder": (".", "folder"),
    }


@pytest.mark.parametrize("kind", ["missing", "truncated", "text", "bomb", "folder"])
def test_pictures(kind: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name, word = pictures(tmp_path)[kind]
    line = bad_line(question(checkpoint, "--image", str(tmp_path / name)), capsys)
    assert word in line


@pytest.mark.parametrize("command", [["generate"], ["generate", "--stream"], ["show", "kept", "--out", "kept.png"]])
def test_the_demo_model_has_nothing_to_add(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """What it says of pictures that it does not know is about pictures that are there."""
    assert main([*command, "--image", "nowhere.jpg", "--question", "What?"]) == 2
    assert capsys.readouterr().err == "dynllava: error: The image 'nowhere.jpg' does not exist; check the path.\n"


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--image", "sample:cat", "--question", "<image> and <image>"], ["2 <image>", "1 images"]),
        (["--question", "<image>"], ["1 <image>", "0 images"]),
        (["--question", "word " * 600], ["context", "512"]),
        (["--max-new-tokens", "600"], ["600", "512"]),
        (["--max-new-tokens", "0"], ["max_new_tokens"]),
        (["--keep-rate", "0"], ["keep_rate", "(0, 1]"]),
        (["--keep-rate", "1.5"], ["keep_rate", "(0, 1]"]),
        (["--keep-rate", "0.5", "--dense"], ["--dense", "--keep-rate"]),
        (["--top-p", "2"], ["(0, 1]"]),
        (["--temperature", "inf"], ["temperature", "inf"]),
        (["--dtype", "int8"], ["int8", "bfloat16"]),
        (["--mesh", "data=64"], ["data=64", "8"]),
        (["--mesh", "tensr=2"], ["tensor"]),
        (["--conv-template", "vicuna_v2"], ["vicuna_v1"]),
        (["--selector", "nothing.here:Class"], ["nothing"]),
        (["--selector", "os.path:join"], ["function", "class"]),
        (["--image", "sample:dog"], ["dog", "cat"]),
        (["--stream", "--json"], ["--json"]),
        (["--json", "nowhere/answer.json"], ["--json", "no such folder"]),
        (["--json", "."], ["--json", "folder"]),
        (["--wrong"], ["--wrong"]),
        (["--batch", "nowhere.jsonl"], ["--batch"]),
        (["--device", "quantum"], ["quantum"]),
    ],
)
def test_options(more: list[str], words: list[str], checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = bad_line(question(checkpoint, *more), capsys)
    assert all(word in line for word in words), line


def test_chat_looks_for_its_sample_before_it_reads_weights(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dynllava_jax.cli.chat.load_model", lambda args: pytest.fail("the weights are read"))
    assert "There is no sample 'nope'; there are sunset" in bad_line(["chat", "--image", "sample:nope"], capsys)


def test_models_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no model" in bad_line(question("nowhere"), capsys)
    for command in (question(""), ["inspect", ""], ["flops", "--model", ""]):
        assert "is empty; name something" in bad_line(command, capsys)
    assert "image is empty" in bad_line(question("demo", "--image", ""), capsys)
    assert "hf download" in bad_line(question("liuhaotian/llava-v1.5-7b"), capsys)
    assert str(tmp_path) in bad_line(question(tmp_path), capsys)
    line = bad_line(question(ROOT / "checkpoint"), capsys)
    assert "dynllava convert from-torch" in line


def copy(folder: Path, name: str = "checkpoint") -> Path:
    source = folder / name
    shutil.copytree(ROOT / name, source)
    shutil.copytree(ROOT / "vision_tower", folder / "vision_tower")
    return source


def edit_config(source: Path, **changes: object) -> None:
    file = source / "config.json"
    config = json.loads(file.read_text())
    sparse = changes.pop("sparse", {})
    assert isinstance(sparse, dict)
    config["sparse_config"] |= sparse
    file.write_text(json.dumps(config | changes))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sparse": {"sparse_layer": 0}}, ["sparse_layer", "0"]),
        ({"sparse": {"sparse_layer": 4}}, ["sparse_layer", "4"]),
        ({"sparse": {"vision_keep_rate": 0.0}}, ["(0, 1]"]),
        ({"sparse": {"output_text_keep_rate": 1.2}}, ["(0, 1]"]),
        ({"mm_projector_type": "perceiver"}, ["perceiver"]),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, ["yarn"]),
        ({"num_key_value_heads": 3}, ["num_key_value_heads"]),
    ],
)
def test_configs(
    changes: dict[str, object], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = copy(tmp_path)
    edit_config(source, **changes)
    line = bad_line(["convert", "from-torch", str(source), str(tmp_path / "dst")], capsys)
    assert all(word in line for word in words), line
    assert not list(tmp_path.glob("dst*"))


def test_tensors_missing_left_over_and_misshapen_are_all_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = copy(tmp_path)
    tensors = load_file(source / "model.safetensors")
    del tensors["model.norm.weight"]
    tensors["model.surprise"] = np.zeros(3, np.float32)
    tensors["lm_head.weight"] = np.zeros((5, 64), np.float32)
    save_file(tensors, source / "model.safetensors")
    line = bad_line(["convert", "from-torch", str(source), str(tmp_path / "dst")], capsys)
    for word in ("model.norm.weight", "model.surprise", "lm_head.weight"):
        assert word in line
    assert not list(tmp_path.glob("dst*"))


@pytest.mark.parametrize(
    ("dst", "more", "word"),
    [
        ("file/dst", (), "cannot be written"),
        ("dst", ("--json", "nowhere/report.json"), "no such folder"),
        ("dst", ("--dtype", "float16"), "lm_head.weight holds values beyond float16"),
    ],
)
def test_what_cannot_be_written(
    dst: str, more: tuple[str, ...], word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = copy(tmp_path)
    tensors = load_file(source / "model.safetensors")
    tensors["lm_head.weight"][0, 0] = 1e6
    save_file(tensors, source / "model.safetensors")
    (tmp_path / "file").touch()
    line = bad_line(["convert", "from-torch", str(source), str(tmp_path / dst), *more], capsys)
    assert word in line
    assert not list(tmp_path.glob("dst*"))


@pytest.mark.parametrize("name", ["checkpoint", "checkpoint_bin"])
def test_truncated_weights(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "checkpoint_bin":
        pytest.importorskip("torch")
    source = copy(tmp_path, name)
    victim = sorted([*source.glob("*.safetensors"), *source.glob("*.bin")])[0]
    victim.write_bytes(victim.read_bytes()[:5000])
    line = bad_line(["convert", "from-torch", str(source), str(tmp_path / "dst")], capsys)
    assert victim.name in line
    assert not list(tmp_path.glob("dst*"))


def test_code_in_a_pickle_is_never_executed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    source = copy(tmp_path, "checkpoint_bin")
    victim = sorted(source.glob("*.bin"))[0]
    victim.write_bytes(pickle.dumps({"model.norm.weight": Code()}))
    line = bad_line(["convert", "from-torch", str(source), str(tmp_path / "dst")], capsys)
    assert victim.name in line
    assert not (tmp_path / "executed").exists()
    assert not list(tmp_path.glob("dst*"))


def test_answers_of_no_tokens_are_not_planned(capsys: pytest.CaptureFixture[str]) -> None:
    line = bad_line(["plan", "--config=configs/tiny.py", "--topology=v5e:2x2", "--generate=8,64,0"], capsys)
    assert line.endswith("--generate 8,64,0: each of the three must be 1 or more.")


def test_logged_tracebacks_become_one_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """JAX logs one where a plugin is installed and its chip is not there."""
    handler = logging.StreamHandler()
    monkeypatch.setattr(logging.getLogger(), "handlers", [handler])
    main(["samples"])
    try:
        raise RuntimeError("no cuDNN\nhere")
    except RuntimeError:
        logging.getLogger("jax").exception("plugin %s failed", "cuda")
    assert capsys.readouterr().err == "plugin cuda failed: no cuDNN here (--debug shows where)\n"


def test_unexpected_errors_are_one_line_too(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise RuntimeError("the device is on fire")

    monkeypatch.setattr("dynllava_jax.inference.load.load", fail)
    assert main(question(checkpoint)) == 1
    assert capsys.readouterr().err == "dynllava: error: RuntimeError: the device is on fire (--debug shows where)\n"
    with pytest.raises(RuntimeError):
        main([*question(checkpoint), "--debug"])
