"""Every JSON file that a command reads, each of its values damaged: refused by one line that names the file, or read.

What is read in spite of it is held to its types where a wrong one would change results without a word.
"""

import json
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynllava_jax.checkpoint import hashes
from dynllava_jax.checkpoint.source import open_source
from dynllava_jax.config.hf import from_hf
from dynllava_jax.config.json_codec import from_json, to_json
from dynllava_jax.config.json_file import parse_object
from dynllava_jax.config.presets import tiny
from dynllava_jax.config.training import LoraConfig, OptimizerConfig, TrainConfig
from dynllava_jax.convert.overlay import _scale
from dynllava_jax.convert.read_torch import TorchWeights
from dynllava_jax.data.json_source import JsonSource
from dynllava_jax.data.manifest import Manifest, Shard
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.errors import InputError
from dynllava_jax.inference.load import without_untrained
from dynllava_jax.training import goodput
from dynllava_jax.verify.cases import read_recording
from dynllava_jax.viz.curves import draw_curves, read_metrics
from tests import golden_files
from tests.convert.torch_folders import save_file
from tests.damage import damaged, outcome

GOLDEN = golden_files.ROOT


# The shape checker would refuse a wrong type before the package does.
pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("unchecked")]


def _json(file: str) -> Any:
    return json.loads((GOLDEN / file).read_text())


_TEXT = {key: value for key, value in _json("checkpoint/config.json").items() if "mm_" not in key} | {
    "model_type": "llama",
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 5000.0,
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512,
    },
}
_FILES = {
    "config": _json("checkpoint/config.json") | {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "vision": _json("vision_tower/config.json"),
    "preprocessor": _json("vision_tower/preprocessor_config.json"),
    "tokenizer": _json("checkpoint/tokenizer_config.json") | {"model_max_length": 512},
}
_LLAVA_HF = {"model_type": "llava", "text_config": _TEXT, "vision_config": _FILES["vision"]}


@pytest.mark.parametrize("name", [*_FILES, "llava_hf"])
def test_configs_of_hugging_face(name: str) -> None:
    files = _FILES if name in _FILES else {"config": _LLAVA_HF, "preprocessor": _FILES["preprocessor"]}
    name = name if name in _FILES else "config"
    called = {"vision": "config.json", "config": "config.json"}.get(name, "config.json")
    for what, data in damaged(files[name], lambda place: not place):
        if what.startswith("text"):
            continue  # `read_object` has these
        found = outcome(what, lambda data=data: from_hf(**files | {name: json.loads(data)}), called)
        if found is not None:
            outcome(what, lambda found=found: from_json(type(found), json.loads(json.dumps(to_json(found))), "x"))
            assert found.decoder.context < 1 << 25, what


def test_configs_of_runs_and_models() -> None:
    run = to_json(TrainConfig(sparsity=tiny().sparsity, optimizer=OptimizerConfig(lora=LoraConfig())))
    for cls, document in ((TrainConfig, run), (type(tiny()), to_json(tiny()))):
        for what, data in damaged(json.loads(json.dumps(document)), lambda place: not place):
            if not what.startswith("text"):
                outcome(what, lambda cls=cls, data=data: from_json(cls, json.loads(data), "x.json: x"), "x.json")


@pytest.mark.parametrize("file", ["tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"])
def test_files_beside_a_tokenizer(tmp_path: Path, file: str) -> None:
    for path in (GOLDEN / "checkpoint").glob("*token*"):
        shutil.copy(path, tmp_path)
    (tmp_path / "added_tokens.json").write_text('{"<x>": 511}')
    good = Tokenizer.load(tmp_path)
    for what, data in damaged(json.loads((tmp_path / file).read_text())):
        (tmp_path / file).write_bytes(data)
        found = outcome(what, lambda: Tokenizer.load(tmp_path), str(tmp_path))
        if found is not None:
            assert found.vocab_size == good.vocab_size or "'<x>'" in what or "()" in what, what
            assert found.encode("a car</s>", add_bos=False)[-1] in (2, 3), what


def test_safetensors_and_what_lies_beside_them(tmp_path: Path) -> None:
    save_file({"a": np.ones((2, 3), np.float32), "b": np.ones(4, np.float32)}, tmp_path / "x.safetensors")
    index = tmp_path / "model.safetensors.index.json"
    good = {"metadata": {"total_size": 40}, "weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}
    for what, data in damaged(good):
        index.write_bytes(data)
        outcome(what, lambda: TorchWeights(tmp_path), index.name)
    index.write_text(json.dumps(good))
    whole = (tmp_path / "x.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    for what, data in damaged(json.loads(whole[8 : 8 + length])):
        (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(data)) + data + whole[8 + length :])
        outcome(what, lambda: TorchWeights(tmp_path), ".safetensors")
    adapter = tmp_path / "adapter_config.json"
    for what, data in damaged({"r": 4, "lora_alpha": 8, "use_rslora": False, "bias": "none", "rank_pattern": {}}):
        adapter.write_bytes(data)
        found = outcome(what, lambda: _scale(tmp_path), adapter.name)
        assert found is None or (found[0] > 0 and type(found[1]) is int), what


def test_a_model_checkpoint(tmp_path: Path) -> None:
    """config.json with its hash made anew, since otherwise that says it all."""
    shutil.copytree(Path(__file__).parent / "checkpoint" / "formats" / "model_v2", tmp_path / "model")
    config, listing = (tmp_path / "model" / f"{name}.json" for name in ("config", "hashes"))
    known, recorded = json.loads(config.read_text()), json.loads(listing.read_text())
    known["facts"] |= {"fresh": ["image_predictor"], "layout": "official"}
    first = next(iter(recorded["items"]))

    def read() -> Any:
        source = open_source(tmp_path / "model")
        without_untrained(source)
        return np.dtype(source.dtype)

    for what, data in damaged(known):
        config.write_bytes(data)
        recorded["files"]["config.json"] = hashes.hash_bytes(data)
        listing.write_text(json.dumps(recorded))
        outcome(what, read, "model")
    config.write_text(json.dumps(known))
    recorded["files"]["config.json"] = hashes.hash_bytes(config.read_bytes())
    leaf = next(iter(recorded["items"][first]))
    for what, data in damaged(recorded, lambda at: at[:1] == ("items",) and not {*at[1:3]} <= {first, leaf}):
        listing.write_bytes(data)
        outcome(what, read, "model")


def test_training_data_and_shards(tmp_path: Path) -> None:
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    file = tmp_path / "data.json"
    for what, data in damaged([{"id": "a", "image": "1.png", "conversations": turns}]):
        file.write_bytes(data)
        record = outcome(what, lambda: JsonSource.open(str(file), None).record(0), "data.json" * ("text" in what))
        assert record is None or all(isinstance(text, str) for turn in record.turns for text in turn), what
    manifest = tmp_path / "manifest.json"
    made = Manifest({"source": "x"}, (Shard("0", 1, 1, 9, "ab"),), 2, {"bad": ("b",)})
    from etils import epath

    made.write(epath.Path(manifest))
    for what, data in damaged(json.loads(manifest.read_text())):
        manifest.write_bytes(data)
        found = outcome(what, lambda: Manifest.read_from(epath.Path(manifest)), manifest.name)
        assert found is None or found.fingerprint == made.fingerprint, what


def test_what_a_run_noted(tmp_path: Path) -> None:
    good = {"step": 1, "ce": 2.0, "eval/loss": None, "tau": 0.5}
    for what, data in damaged(good):
        (tmp_path / "metrics.jsonl").write_bytes(data + b"\n")
        outcome(what, lambda: draw_curves(read_metrics(tmp_path)), "metrics.jsonl")
    times = {"seconds": {"work": 1.0}, "down": 0.0, "starts": 1, "work_at": {"2": 1.0}, "seen": 3.0}
    for what, data in damaged(times):
        (tmp_path / goodput.FILE).write_bytes(data)
        outcome(what, lambda: str(goodput.Goodput(str(tmp_path), 2).times))


def test_recordings_of_the_official_code(tmp_path: Path) -> None:
    case = "05_prefill_kv"
    (tmp_path / "cases").mkdir()
    (tmp_path / "checkpoint").mkdir()
    for name in ("manifest.json", f"cases/{case}.json", f"cases/{case}.npz", "cases/00_images.npz"):
        shutil.copy(GOLDEN / name, tmp_path / name)
    (tmp_path / "cases" / "00_images.json").write_text("{}")
    file = tmp_path / "manifest.json"
    for what, data in damaged(json.loads(file.read_text()), lambda at: len(at) > 1 and at[0] != "special_text"):
        file.write_bytes(data)
        outcome(what, lambda: read_recording(tmp_path), file.name)
    shutil.copy(GOLDEN / "manifest.json", tmp_path)
    file = tmp_path / "cases" / f"{case}.json"
    described = json.loads(file.read_text())
    (array, *_) = described["arrays"]
    for what, data in damaged(described, lambda at: at[:1] == ("arrays",) and not {*at[1:2]} <= {array}):
        file.write_bytes(data)
        outcome(what, lambda: read_recording(tmp_path).case(case).images(), str(tmp_path / "cases"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b'{"a": 1, "b": {"c": 2, "c": 3}}', "the key 'c' occurs twice"),
        (b"[1]", r"must hold a JSON object, not \[1\]"),
        (b"{", "cannot be read as JSON"),
        ('{"a": 1}'.encode("utf-16"), "cannot be read as JSON"),
    ],
)
def test_objects(text: bytes, says: str) -> None:
    with pytest.raises(InputError, match=f"^x.json {says}.*; copy it again|{says}.*; copy it again"):
        parse_object(text, "x.json")
    assert parse_object(b'\xef\xbb\xbf{"a": 1}', "x.json") == {"a": 1}
