"""`convert … --verify-logits`: two models that are the same are found so, and two that are not as well."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from dynllava_jax.checkpoint import store
from dynllava_jax.cli.main import main
from dynllava_jax.convert.from_torch import convert
from dynllava_jax.verify import logits
from dynllava_jax.verify.logits import TorchSide
from tests import golden_files
from tests.convert import torch_folders

GOLDEN = golden_files.ROOT
ASK = ["--verify-logits", "--verify-image", "sample:coffee"]


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llava-hf model with the golden tokenizer."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("hf") / "src"
    torch_folders.llava_hf(folder, vocab=512)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(GOLDEN / "checkpoint" / name, folder)
    return folder


@pytest.mark.slow
def test_against_transformers(hf: Path, tmp_path: Path) -> None:
    convert(hf, tmp_path / "model")
    found = logits.compare(hf, tmp_path / "model", TorchSide(), np.zeros((20, 30, 3), np.uint8), "What?")
    assert found.ok
    assert found.apart == 0
    assert 0 < found.worst < found.tolerance


OFFICIAL = """
import sys, json, pathlib
import numpy as np
arguments = dict(zip(sys.argv[2::2], sys.argv[3::2]))
if "--inputs" in arguments:
    given = np.load(arguments["--inputs"])
    pathlib.Path({record!r}).write_text(json.dumps(
        [arguments, given["ids"].tolist(), list(given["pixels"].shape), given["round_ids"].tolist()]))
    np.savez(arguments["--out"], **np.load({answer!r}))
"""


def test_against_official_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What a stand-in for the official side is asked, and what becomes of its answer."""
    (tmp_path / "repo" / "llava").mkdir(parents=True)
    answer, record = tmp_path / "answer.npz", tmp_path / "record.json"
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\n{OFFICIAL.format(record=str(record), answer=str(answer))}")
    python.chmod(0o755)
    src, model = GOLDEN / "checkpoint", tmp_path / "model"
    np.savez(answer, logits=np.zeros((3, 512), np.float32), positions=np.full(3, 7))
    options = ["--official-repo", str(tmp_path / "repo"), "--torch-python", str(python)]
    assert main(["convert", "from-torch", str(src), str(model), *ASK, *options, "--json"]) == 1
    wrong = json.loads(capsys.readouterr().out)["logits"]
    assert not wrong["ok"]
    assert wrong["worst"] > wrong["tolerance"]
    arguments, asked, pixels, marker = json.loads(record.read_text())
    assert arguments["--kind"] == "official"
    assert arguments["--folder"] == str(src)
    assert arguments["--vision-tower"].endswith("vision_tower")
    assert asked.count(-200) == 1
    assert (pixels, marker) == ([1, 3, 56, 56], [337, 495])

    # The right answer is ours; a token fewer on their side is told.
    picture = np.zeros((20, 30, 3), np.uint8)
    side = TorchSide(tmp_path / "repo", str(python))
    ours, positions = logits._ours(model, store.read_config(model), "float32", *_asked(model, picture))
    np.savez(answer, logits=ours[1:] + np.float32(1e-6), positions=positions[1:])
    fewer = logits.compare(src, model, side, picture, "What?")
    assert 0 < fewer.worst < fewer.tolerance
    assert (fewer.ok, fewer.apart, fewer.tokens) == (False, 1, len(ours) - 1)
    assert "1 tokens are kept by one side only" in str(fewer)
    assert dataclasses.replace(fewer, apart=0).ok
    assert dataclasses.replace(fewer, dtype="bfloat16").ok


def _asked(model: Path, picture: np.ndarray) -> tuple:
    from dynllava_jax.data.tokenizer import Tokenizer
    from dynllava_jax.inference.buckets import Buckets
    from dynllava_jax.inference.prepare import Preparer
    from dynllava_jax.inference.request import Request

    prepare = Preparer(store.read_config(model), Tokenizer.load(model / store.FILES), Buckets())
    prepared = prepare(Request("What?", [picture], 1))
    return prepared.sample, prepared.pixels


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "give its checkout with --official-repo, and with --torch-python"),
        (["--official-repo", "nowhere"], "--official-repo nowhere is no checkout of Dynamic-LLaVA"),
        (["--official-repo", "repo", "--torch-python", "no-python"], "--torch-python no-python cannot be run: No such"),
        (["--official-repo", "repo"], "the PyTorch side did not run: "),
        (["--base", "x"], "not a part of one laid over its --base"),
        (["--verify-image", "sample:dodo"], "There is no sample 'dodo'"),
    ],
)
def test_what_is_missing_is_said_before_any_work(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "repo" / "llava").mkdir(parents=True)
    assert main(["convert", "from-torch", str(GOLDEN / "checkpoint"), "model", "--verify-logits", *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "model").exists()
