"""`convert … --verify-logits`: two models that are the same are found so, and two that are not as well."""

import dataclasses
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dynllava_jax.checkpoint import store
from dynllava_jax.cli.main import main
from dynllava_jax.convert.from_torch import convert
from dynllava_jax.convert.overlay import OverlaidWeights
from dynllava_jax.convert.read_torch import TorchWeights
from dynllava_jax.convert.torch_source import open_torch
from dynllava_jax.verify import logits, torch_side
from dynllava_jax.verify.logits import TorchSide
from tests import golden_files
from tests.convert import test_inputs, torch_folders

GOLDEN = golden_files.ROOT
TOKENIZER = ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json")
ASK = ["--verify-logits", "--verify-image", "sample:coffee"]


@pytest.fixture(scope="module")
def hf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny llava-hf model with the golden tokenizer."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("hf") / "src"
    torch_folders.llava_hf(folder, vocab=512)
    for name in TOKENIZER:
        shutil.copy(GOLDEN / "checkpoint" / name, folder)
    return folder


@pytest.mark.slow
def test_against_transformers(hf: Path, tmp_path: Path) -> None:
    convert(hf, tmp_path / "model")
    found = logits.compare(hf, tmp_path / "model", TorchSide(), np.zeros((20, 30, 3), np.uint8), "What?")
    assert found.ok
    assert found.apart == 0
    assert 0 < found.worst < found.tolerance


@pytest.mark.slow
def test_a_language_model_alone_is_asked_without_a_picture(hf: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    whole = transformers.LlavaForConditionalGeneration.from_pretrained(hf)
    bare = transformers.LlamaForCausalLM(whole.config.text_config)
    bare.model.load_state_dict(whole.model.language_model.state_dict())
    bare.save_pretrained(tmp_path / "bare")
    for name in TOKENIZER:
        shutil.copy(GOLDEN / "checkpoint" / name, tmp_path / "bare")
    assert logits.kind_of(tmp_path / "bare") == "text"
    convert(tmp_path / "bare", tmp_path / "model", vision_tower=GOLDEN / "vision_tower")
    found = logits.compare(tmp_path / "bare", tmp_path / "model", TorchSide(), None, "What?")
    assert found.ok
    assert 0 < found.worst < found.tolerance


def test_parts_are_laid_over_their_base_as_conversion_does_it(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    base, stored = torch_folders.golden("checkpoint", tmp_path), "float16"
    torch_folders.change_tensors(
        base, lambda tensors: tensors.update({k: v.astype(stored) for k, v in tensors.items()})
    )
    part = test_inputs.lora(tmp_path, test_inputs.adapters())
    wanted = OverlaidWeights(part, TorchWeights(base))
    state = {name: torch.from_numpy(tensor).float() for name, tensor in torch_folders.tensors_of(base).items()}
    torch_side.lay_over(SimpleNamespace(state_dict=lambda: state), part, torch.float16)
    assert wanted.infos.keys() == state.keys()
    for name, tensor in state.items():
        np.testing.assert_allclose(tensor, wanted.read(name).astype(np.float32), rtol=1e-3, atol=1e-7, err_msg=name)
    assert not np.array_equal(
        state[f"{test_inputs.TARGET}.weight"], TorchWeights(base).read(f"{test_inputs.TARGET}.weight")
    )


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


@pytest.mark.slow
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

    # A part is run on its base.
    base = torch_folders.golden("checkpoint", tmp_path)
    torch_folders.change_tensors(base, test_inputs.strip)
    part = open_torch(test_inputs.lora(tmp_path, test_inputs.adapters()), base, [])
    side = dataclasses.replace(side, base=base, vision_tower=test_inputs.TOWER)
    logits._theirs(part, side, store.read_config(model), *_asked(model, picture))
    arguments = json.loads(record.read_text())[0]
    assert (arguments["--folder"], arguments["--base"]) == (str(part.folder), str(base))
    assert arguments["--merged-dtype"] == "float32"


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
        (["--base", "x"], "holds neither LoRA adapters nor a projector alone, so --base has no meaning"),
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


@pytest.mark.parametrize(
    "option", ["--official-repo", "--torch-python", "--verify-image", "--verify-question", "--verify-dtype"]
)
def test_an_option_of_the_comparison_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str) -> None:
    value = "float32" if option == "--verify-dtype" else "x"
    assert main(["convert", "from-torch", str(GOLDEN / "checkpoint"), str(tmp_path / "model"), option, value]) == 2
    assert f"{option} has no meaning without --verify-logits" in capsys.readouterr().err
    export = ["convert", "to-torch", str(tmp_path), str(tmp_path / "torch"), "--layout", "official"]
    assert main([*export, "--vision-tower", str(GOLDEN / "vision_tower")]) == 2
    assert "--vision-tower has no meaning without --verify-logits" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_pytorch_could_not_read_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def said(*arguments: str | Path) -> str:
        assert main(["convert", *map(str, arguments), "--verify-logits"]) == 2
        return capsys.readouterr().err

    monkeypatch.setattr(logits, "_call", lambda *arguments: None)
    model = tmp_path / "model"
    src = torch_folders.golden("checkpoint", tmp_path)  # its tower lies inside, and is not beside it
    assert "take a folder here for SRC" in said("from-torch", "gs://bucket/src", model)
    assert "take a folder here for DST" in said("to-torch", model, "gs://bucket/dst", "--layout", "official")
    assert "take a folder here for --base" in said("from-torch", src, model, "--base", "gs://bucket/base")
    assert "give it with --vision-tower" in said("from-torch", src, model)
    assert not model.exists()
    convert(src, model, vision_tower=GOLDEN / "vision_tower")
    assert "give it with --vision-tower" in said("to-torch", model, tmp_path / "back", "--layout", "official")
    for file in src.glob("tokenizer*"):
        file.unlink()
    tower = ("--vision-tower", GOLDEN / "vision_tower")
    assert "has no tokenizer to ask with" in said("from-torch", src, tmp_path / "other", *tower)
    convert(src, tmp_path / "mute", vision_tower=GOLDEN / "vision_tower")
    to_hf = ("to-torch", tmp_path / "mute", tmp_path / "back", "--layout", "hf", "--without-predictors")
    assert "has no tokenizer to ask with" in said(*to_hf)
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "model", "mute"}
