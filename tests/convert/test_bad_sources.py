"""Each damaged or foreign source gets one sentence that names it, and leaves nothing at DST."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dynllava_jax.convert.from_torch import Preference, convert
from dynllava_jax.convert.read_torch import TorchWeights
from dynllava_jax.errors import InputError
from tests import golden_files
from tests.convert import torch_folders
from tests.convert.test_from_torch import loaded
from tests.convert.torch_folders import Tensors

GOLDEN = golden_files.ROOT


@pytest.fixture
def src(tmp_path: Path) -> Path:
    """A golden checkpoint to damage, with its tower beside it."""
    torch_folders.golden("vision_tower", tmp_path)
    return torch_folders.golden("checkpoint", tmp_path)


def refused(src: Path, *needles: str, tower: Path | None = None) -> str:
    """Converts, expects one line that holds every needle, and no trace of DST."""
    dst = src.parent / "dst"
    with pytest.raises(InputError) as caught:
        convert(src, dst, vision_tower=tower)
    message = str(caught.value)
    assert "\n" not in message
    assert [needle for needle in needles if needle not in message] == []
    assert not list(src.parent.glob("dst*"))
    return message


def test_missing_extra_and_misshaped_tensors_are_listed_at_once(src: Path) -> None:
    def damage(tensors: Tensors) -> None:
        del tensors["model.layers.1.self_attn.v_proj.weight"]
        del tensors["model.instruct_score_predictor.output_mlp.3.bias"]
        tensors["model.norm.weight"] = np.ones(63, np.float32)
        tensors["model.layers.0.mlp.up_proj.weight"] = np.ones((64, 128), np.float32)
        tensors["model.layers.9.input_layernorm.weight"] = np.ones(64, np.float32)
        tensors["model.layers.0.self_attn.q_proj.bias"] = np.ones(64, np.float32)
        tensors["lm_head.weight"] = np.ones((512, 64), np.int32)

    torch_folders.change_tensors(src, damage)
    refused(
        src,
        "7 tensors do not fit",
        "model.layers.1.self_attn.v_proj.weight [64, 64] is missing",
        "model.instruct_score_predictor.output_mlp.3.bias [16] is missing",
        "model.norm.weight has shape [63], which does not give decoder/final_norm/scale [64]",
        "model.layers.0.mlp.up_proj.weight has shape [64, 128]",
        "model.layers.9.input_layernorm.weight [64] is left over",
        "model.layers.0.self_attn.q_proj.bias [64] is left over",
        "lm_head.weight has dtype int32",
    )


def test_a_checkpoint_that_announces_predictors_must_have_them(src: Path) -> None:
    def strip(tensors: Tensors) -> None:
        for name in [name for name in tensors if "image_score" in name]:
            del tensors[name]

    torch_folders.change_tensors(src, strip)
    refused(src, "model.image_score_predictor.down_mlp.0.weight [64] is missing")


def test_predictors_of_its_own_are_kept_and_said(src: Path, tmp_path: Path) -> None:
    report = convert(src, tmp_path / "dst", predictors=False)
    assert any("--no-predictors is about those that a base LLaVA lacks" in note for note in report.notes)
    assert any(name.startswith("image_predictor") for name in loaded(tmp_path / "dst"))


def test_predictors_that_the_config_does_not_know(src: Path) -> None:
    (src / "config.json").write_text((GOLDEN / "config_llava15_base.json").read_text())
    refused(src, "has no sparse_config, but the weights hold predictors", "add the sparse_config")


@pytest.mark.parametrize(
    ("key", "value", "needle"),
    [
        ("sparse_layer", 0, "sparse_layer must be 1 or more, not 0"),
        ("sparse_layer", 4, "must be below the decoder's 4 layers"),
        ("vision_keep_rate", 0.0, "vision_keep_rate must lie in (0, 1]"),
        ("output_text_keep_rate", 1.5, "output_text_keep_rate must lie in (0, 1]"),
        ("nhead", 5, "nhead 5 does not divide d_model 32"),
        ("use_vision_predictor", None, "sparse_config has no use_vision_predictor"),
    ],
)
def test_sparse_config(src: Path, key: str, value: object, needle: str) -> None:
    sparse = json.loads((src / "config.json").read_text())["sparse_config"]
    torch_folders.change_config(src, sparse_config=sparse | {key: value})
    assert "config.json" in refused(src, needle)


@pytest.mark.parametrize(
    ("key", "value", "needle"),
    [
        ("mm_projector_type", "qformer", "mm_projector_type 'qformer' is unknown; use linear"),
        ("model_type", "llava_mpt", "model_type 'llava_mpt' is not supported"),
        ("image_aspect_ratio", "anyres_max_9", "image_aspect_ratio 'anyres_max_9' is not supported"),
        ("rope_scaling", {"type": "yarn", "factor": 2.0}, "rope_type 'yarn' is not supported"),
        ("hidden_act", "gelu", "hidden_act 'gelu' is not supported"),
        ("mm_use_im_start_end", True, "mm_use_im_start_end"),
        ("num_hidden_layers", -4, "num_hidden_layers must be above 0, not -4"),
        ("vocab_size", 2**63, "vocab_size 9223372036854775808 is more than 16777216"),
        ("num_attention_heads", 3, "num_attention_heads 3 does not divide hidden_size 64"),
        ("text_config", {}, "the tensors' names are official's"),
    ],
)
def test_config(src: Path, key: str, value: object, needle: str) -> None:
    torch_folders.change_config(src, **{key: value})
    assert "config.json" in refused(src, needle)


def test_two_different_towers_need_a_choice(src: Path, tmp_path: Path) -> None:
    def double(tensors: Tensors) -> None:
        tensors["vision_model.pre_layrnorm.weight"] *= 2

    torch_folders.change_tensors(tmp_path / "vision_tower", double)
    refused(src, "vision/pre_norm/scale", "--prefer-tower given", "--prefer-tower inside")
    choices: dict[Preference, int] = {"inside": 1, "given": 2}
    for choice, factor in choices.items():
        report = convert(src, tmp_path / choice, prefer_tower=choice)
        scale = torch_folders.tensors_of(GOLDEN / "vision_tower")["vision_model.pre_layrnorm.weight"]
        np.testing.assert_array_equal(loaded(tmp_path / choice)["vision/pre_norm/scale"], scale * factor)
        assert any(f"the {choice} one is taken" in note for note in report.notes)


def test_no_tower_anywhere(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    src = torch_folders.golden("checkpoint_bin", tmp_path)
    refused(src, "made with ./vision_tower", f"dynllava convert from-torch {src} DST --vision-tower")


def test_a_tower_inside_whose_config_is_nowhere(tmp_path: Path) -> None:
    src = torch_folders.golden("checkpoint", tmp_path)
    refused(src, "'./vision_tower'", "give its folder with --vision-tower")


def test_what_is_no_tower(src: Path, tmp_path: Path) -> None:
    refused(src, "is no folder", tower=tmp_path / "nowhere")
    refused(src, "holds no CLIP vision tower", tower=src)


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "src"
    refused(folder, "is no folder")
    folder.mkdir()
    refused(folder, "has no config.json")
    (folder / "config.json").write_text("{")
    refused(folder, "config.json cannot be read as JSON")
    (folder / "config.json").write_text("{}")
    refused(folder, "holds no PyTorch weights")
    refused(torch_folders.golden("vision_tower", tmp_path), "holds no LLaVA")


def test_dst_is_never_overwritten(src: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "mine").touch()
    with pytest.raises(InputError, match="exists already"):
        convert(src, taken)
    assert [path.name for path in taken.iterdir()] == ["mine"]


HEADER = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'


def safetensors(header: bytes, data: bytes = b"\0" * 8, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


@pytest.mark.parametrize(
    ("content", "needle"),
    [
        (b"", "truncated"),
        (b"hello", "truncated"),
        (safetensors(HEADER, b"\0" * 4), "truncated: a ends at byte"),
        (safetensors(HEADER)[:30], "cannot hold its header"),
        (safetensors(HEADER, length=2**32), "cannot hold its header"),
        (safetensors(b"not json"), "its header is not JSON"),
        (safetensors(b"[1]"), "its header is not an object"),
        (safetensors(HEADER.replace(b"[2]", b"[-2]")), "entry for a is malformed"),
        (safetensors(HEADER.replace(b"[2]", b"[2.5]")), "entry for a is malformed"),
        (safetensors(HEADER.replace(b"[2]", b"[99999999999]")), "shape [99999999999] but 8 bytes"),
        (safetensors(HEADER.replace(b"[2]", b"[" + b"1," * 40 + b"2]")), "entry for a is malformed"),
        (
            safetensors(HEADER.replace(b"[2]", b"[0,%d]" % 2**70).replace(b"[0,8]", b"[0,0]")),
            "entry for a is malformed",
        ),
        (safetensors(HEADER.replace(b"[0,8]", b"[8,0]")), "entry for a is malformed"),
        (safetensors(HEADER.replace(b"F32", b"F33")), "dtype 'F33'"),
        (safetensors(HEADER[:-1] + b',"a":1}'), "occurs twice"),
    ],
)
def test_damaged_safetensors(tmp_path: Path, content: bytes, needle: str) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError) as caught:
        TorchWeights(tmp_path)
    assert needle in str(caught.value)
    assert "model.safetensors" in str(caught.value)


def test_every_truncation_of_a_safetensors_file_is_noticed(src: Path) -> None:
    file = src / "model.safetensors"
    whole = file.read_bytes()
    for share in (0.001, 0.1, 0.5, 0.999):
        file.write_bytes(whole[: int(share * len(whole))])
        refused(src, "truncated")


class _Code:
    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("new_format", [True, False])
def test_a_pickle_with_code_is_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_format: bool) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    torch.save({"a": _Code()}, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=new_format)
    with pytest.raises(InputError, match="pickle with code in it and was refused"):
        TorchWeights(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({"a": _Code()}))
    with pytest.raises(InputError, match=r"pytorch_model\.bin"):
        TorchWeights(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_damaged_bin_files(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(1000)}, file)
    whole = file.read_bytes()
    for content in (b"", b"hello world", whole[:100], whole[: len(whole) // 2], whole[:-1]):
        file.write_bytes(content)
        with pytest.raises(InputError, match="truncated or no PyTorch file"):
            TorchWeights(tmp_path)
    torch.save([torch.ones(3)], file)
    with pytest.raises(InputError, match="holds no state dict"):
        TorchWeights(tmp_path)
    torch.save({"a": 3}, file)
    with pytest.raises(InputError, match="a is of type int"):
        TorchWeights(tmp_path)
    torch.save({"a": torch.ones([1] * 40)}, file)
    with pytest.raises(InputError, match=r"a is of type Tensor .* and 40 dimensions, not a plain tensor"):
        TorchWeights(tmp_path)


def test_bfloat16_and_the_old_format_of_bin_files(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    tensor = torch.arange(6, dtype=torch.float32).reshape(2, 3)
    torch.save(
        {"a": tensor.bfloat16().T, "b": tensor.half()},
        tmp_path / "pytorch_model.bin",
        _use_new_zipfile_serialization=False,
    )
    weights = TorchWeights(tmp_path)
    assert weights.infos["a"].dtype.name == "bfloat16"
    np.testing.assert_array_equal(weights.read("a").astype(np.float32), tensor.T.numpy())
    np.testing.assert_array_equal(weights.read("b"), tensor.half().numpy())


@pytest.mark.parametrize(
    ("weight_map", "needle"),
    [
        ({"a": "../secret.safetensors"}, "not a file beside it"),
        ({"a": "/etc/passwd"}, "not a file beside it"),
        ({"a": "x.safetensors", "b": 3}, "not a file beside it"),
        ({"a": "x.txt"}, "neither .safetensors nor .bin"),
        ({"a": "gone.safetensors"}, "gone.safetensors is missing"),
        ({"a": "x.safetensors", "b": "x.safetensors"}, "disagree about 1 tensors: b"),
        ({}, "has no weight_map"),
    ],
)
def test_index(tmp_path: Path, weight_map: dict[str, object], needle: str) -> None:
    torch_folders.save_file({"a": np.ones(2, np.float32)}, tmp_path / "x.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(InputError) as caught:
        TorchWeights(tmp_path)
    assert needle in str(caught.value)
