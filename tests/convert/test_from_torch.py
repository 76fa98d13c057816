"""Every tensor of every source layout arrives where it belongs, unchanged."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from flax import nnx

from dynllava_jax.checkpoint import store
from dynllava_jax.checkpoint.load import load
from dynllava_jax.config.decoder import LinearScaling
from dynllava_jax.convert.from_torch import convert
from dynllava_jax.errors import InputError
from tests import golden_files
from tests.convert import torch_folders
from tests.convert.torch_folders import Tensors

GOLDEN = golden_files.ROOT


def loaded(path: Path) -> dict[str, np.ndarray]:
    state = nnx.to_flat_state(nnx.state(load(path)))
    return {"/".join(map(str, name)): np.asarray(param.get_value()) for name, param in state}


def patch(weight: np.ndarray) -> np.ndarray:
    """[C, channel, row, column] written out by hand as [(row, column, channel), C]."""
    side = weight.shape[-1]
    rows = [weight[:, channel, r, c] for r in range(side) for c in range(side) for channel in range(3)]
    return np.stack(rows)


def expected_model(torch: Tensors, decoder: str, tower: str) -> dict[str, np.ndarray]:
    """What the parameters must be, spelled out without the package's table."""
    layer, vision = f"{decoder}layers.{{}}.", f"{tower}encoder.layers.{{}}."
    found = {
        "decoder/embedding": torch[f"{decoder}embed_tokens.weight"],
        "decoder/final_norm/scale": torch[f"{decoder}norm.weight"],
        "vision/class_embedding": torch[f"{tower}embeddings.class_embedding"],
        "vision/position_embedding": torch[f"{tower}embeddings.position_embedding.weight"],
        "vision/patch_embedding/kernel": patch(torch[f"{tower}embeddings.patch_embedding.weight"]),
        "vision/pre_norm/scale": torch[f"{tower}pre_layrnorm.weight"],
        "vision/pre_norm/bias": torch[f"{tower}pre_layrnorm.bias"],
    }
    layers = len({name.split(".")[-4] for name in torch if name.startswith(decoder) and name.endswith("q_proj.weight")})
    for path, name in {
        "attention/query": "self_attn.q_proj",
        "attention/key": "self_attn.k_proj",
        "attention/value": "self_attn.v_proj",
        "attention/out": "self_attn.o_proj",
        "mlp/gate": "mlp.gate_proj",
        "mlp/up": "mlp.up_proj",
        "mlp/down": "mlp.down_proj",
    }.items():
        kernels = [torch[layer.format(i) + name + ".weight"].T for i in range(layers)]
        found[f"decoder/shallow/{path}/kernel"] = np.stack(kernels[:2])
        found[f"decoder/deep/{path}/kernel"] = np.stack(kernels[2:])
    for path, name in {"attention_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}.items():
        scales = [torch[layer.format(i) + name + ".weight"] for i in range(layers)]
        found[f"decoder/shallow/{path}/scale"] = np.stack(scales[:2])
        found[f"decoder/deep/{path}/scale"] = np.stack(scales[2:])
    for path, name in {
        "attention/query": "self_attn.q_proj",
        "attention/key": "self_attn.k_proj",
        "attention/value": "self_attn.v_proj",
        "attention/out": "self_attn.out_proj",
        "mlp/up": "mlp.fc1",
        "mlp/down": "mlp.fc2",
    }.items():
        found[f"vision/layers/{path}/kernel"] = np.stack([torch[f"{vision.format(i)}{name}.weight"].T for i in (0, 1)])
        found[f"vision/layers/{path}/bias"] = np.stack([torch[f"{vision.format(i)}{name}.bias"] for i in (0, 1)])
    for path, name in {"norm1": "layer_norm1", "norm2": "layer_norm2"}.items():
        found[f"vision/layers/{path}/scale"] = np.stack([torch[f"{vision.format(i)}{name}.weight"] for i in (0, 1)])
        found[f"vision/layers/{path}/bias"] = np.stack([torch[f"{vision.format(i)}{name}.bias"] for i in (0, 1)])
    return found


def linear(torch: Tensors, path: str, name: str) -> dict[str, np.ndarray]:
    return {f"{path}/kernel": torch[f"{name}.weight"].T, f"{path}/bias": torch[f"{name}.bias"]}


def norm(torch: Tensors, path: str, name: str) -> dict[str, np.ndarray]:
    return {f"{path}/scale": torch[f"{name}.weight"], f"{path}/bias": torch[f"{name}.bias"]}


def expected_golden(torch: Tensors) -> dict[str, np.ndarray]:
    found = expected_model(torch, "model.", "model.vision_tower.vision_tower.vision_model.")
    found["decoder/head/kernel"] = torch["lm_head.weight"].T
    image = "model.image_score_predictor"
    for i, number in enumerate((0, 2)):
        found |= linear(torch, f"projector/layers/{i}", f"model.mm_projector.{number}")
    found |= norm(torch, "image_predictor/input_norm", f"{image}.down_mlp.0")
    found |= linear(torch, "image_predictor/input_proj", f"{image}.down_mlp.1")
    for i, number in enumerate((0, 2, 4)):
        found |= linear(torch, f"image_predictor/score/{i}", f"{image}.output_mlp.{number}")
    blocks = []
    for i in (0, 1):
        block = f"{image}.transformer.{i}"
        qkv = {"qkv/kernel": torch[f"{block}.attn.qkv.weight"].T}
        blocks.append(
            norm(torch, "norm1", f"{block}.norm1")
            | qkv
            | linear(torch, "out", f"{block}.attn.proj")
            | norm(torch, "norm2", f"{block}.norm2")
            | linear(torch, "mlp/up", f"{block}.mlp.fc1")
            | linear(torch, "mlp/down", f"{block}.mlp.fc2")
        )
    found |= {f"image_predictor/blocks/{name}": np.stack([block[name] for block in blocks]) for name in blocks[0]}
    for place, name in {"output": "output_text", "instruct": "instruct"}.items():
        text = f"model.{name}_score_predictor.output_mlp"
        found |= norm(torch, f"{place}_predictor/norm", f"{text}.0")
        for i, number in enumerate((1, 3, 5, 7)):
            found |= linear(torch, f"{place}_predictor/layers/{i}", f"{text}.{number}")
    return found


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)


def test_the_official_save(tmp_path: Path) -> None:
    report = convert(GOLDEN / "checkpoint", tmp_path / "dst")
    torch = torch_folders.tensors_of(GOLDEN / "checkpoint")
    assert_same(loaded(tmp_path / "dst"), expected_golden(torch))
    assert report.tensors + report.carried == len(torch)
    assert report.fresh == ()
    assert any("equals" in note for note in report.notes)
    carried = store.read_carried(tmp_path / "dst", store.read_info(tmp_path / "dst"))
    assert sum(".layers.2." in name for name in carried) == 16
    for name, tensor in carried.items():
        np.testing.assert_array_equal(tensor, torch[name])


def test_what_travels_with_the_weights(tmp_path: Path) -> None:
    convert(GOLDEN / "checkpoint", tmp_path / "dst", template="llava_v1")
    info = store.read_info(tmp_path / "dst")
    assert info.config.text_prep.template == "llava_v1"
    assert info.config.text_prep.round_ids == (337, 495)
    assert info.config.image_prep.crop == 56
    assert info.dtype == "float32"
    assert info.versions["jax"]
    for name in ("config.json", "tokenizer.model", "generation_config.json"):
        assert (tmp_path / "dst" / store.FILES / name).read_bytes() == (GOLDEN / "checkpoint" / name).read_bytes()


@pytest.mark.parametrize("tower", ["vision_tower", "vision_tower_clipmodel"])
def test_bin_shards_with_the_tower_apart(tmp_path: Path, tower: str) -> None:
    pytest.importorskip("torch")
    report = convert(GOLDEN / "checkpoint_bin", tmp_path / "dst", vision_tower=GOLDEN / tower)
    wanted = expected_golden(torch_folders.tensors_of(GOLDEN / "checkpoint"))
    assert_same(loaded(tmp_path / "dst"), {name: x for name, x in wanted.items() if not name.startswith("instruct")})
    carried = store.read_carried(tmp_path / "dst", store.read_info(tmp_path / "dst"))
    assert sum("inv_freq" in name for name in carried) == 4
    assert report.dropped == (24 if tower == "vision_tower_clipmodel" else 0)
    assert any("24 tensors left out" in note for note in report.notes) == (report.dropped == 24)


@pytest.mark.slow
def test_a_base_llava_gets_fresh_predictors(tmp_path: Path) -> None:
    src = torch_folders.golden("checkpoint", tmp_path)
    torch_folders.golden("vision_tower", tmp_path)
    (src / "config.json").write_text((GOLDEN / "config_llava15_base.json").read_text())

    def strip(tensors: Tensors) -> None:
        for name in [name for name in tensors if "predictor" in name]:
            del tensors[name]

    torch_folders.change_tensors(src, strip)
    report = convert(src, tmp_path / "dst")
    assert report.fresh == ("image_predictor", "output_predictor")
    assert any("freshly initialised" in note for note in report.notes)
    convert(src, tmp_path / "again")
    first, second = store.read_info(tmp_path / "dst"), store.read_info(tmp_path / "again")
    assert first.content_hash == second.content_hash
    assert first.facts["fresh"] == ["image_predictor", "output_predictor"]
    params = loaded(tmp_path / "dst")
    assert np.std(params["image_predictor/input_proj/kernel"]) == pytest.approx(0.02, rel=0.1)
    assert np.all(params["output_predictor/norm/scale"] == 1)
    convert(src, tmp_path / "dense", predictors=False)
    assert not any("predictor" in name for name in loaded(tmp_path / "dense"))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtype(tmp_path: Path, dtype: str) -> None:
    report = convert(GOLDEN / "checkpoint", tmp_path / "dst", dtype=dtype)
    assert set(report.dtypes) == {dtype}
    wanted = torch_folders.tensors_of(GOLDEN / "checkpoint")["lm_head.weight"].T.astype(np.dtype(dtype))
    np.testing.assert_array_equal(loaded(tmp_path / "dst")["decoder/head/kernel"], wanted)


def test_half_precision_is_kept_as_stored(tmp_path: Path) -> None:
    src = torch_folders.golden("checkpoint", tmp_path)
    torch_folders.golden("vision_tower", tmp_path)

    def halve(tensors: Tensors) -> None:
        for name in tensors:
            tensors[name] = tensors[name].astype(np.float16 if "predictor" in name else ml_dtypes.bfloat16)

    torch_folders.change_tensors(src, halve)
    report = convert(src, tmp_path / "dst")
    # The tower beside it is float32; compared in the inside one's dtype it is the same.
    assert any("equals" in note for note in report.notes)
    assert set(report.dtypes) == {"float16", "bfloat16"}


NEW_TO_OLD = {
    "model.language_model.": "language_model.model.",
    "lm_head.": "language_model.lm_head.",
    "model.vision_tower.": "vision_tower.vision_model.",
    "model.multi_modal_projector.": "multi_modal_projector.",
}


def test_llava_hf_in_the_layouts_of_transformers_4_and_5(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    torch = torch_folders.llava_hf(tmp_path / "saved")
    wanted = expected_model(torch, "model.language_model.", "model.vision_tower.")
    wanted["decoder/head/kernel"] = torch["lm_head.weight"].T
    for i in (0, 1):
        wanted |= linear(torch, f"projector/layers/{i}", f"model.multi_modal_projector.linear_{i + 1}")
    convert(tmp_path / "saved", tmp_path / "dst", predictors=False)
    assert_same(loaded(tmp_path / "dst"), wanted)

    hashes = {store.read_info(tmp_path / "dst").config: None}
    for name, rename in {
        "new": lambda key: key,
        "old": lambda key: next(old + key[len(new) :] for new, old in NEW_TO_OLD.items() if key.startswith(new)),
        "between": lambda key: key.replace("vision_tower.", "vision_tower.vision_model."),
    }.items():
        src = tmp_path / name
        src.mkdir()
        (src / "config.json").write_text((tmp_path / "saved" / "config.json").read_text())
        renamed = {rename(key): np.ascontiguousarray(tensor) for key, tensor in torch.items()}
        torch_folders.save_file(renamed, src / "model.safetensors")
        convert(src, tmp_path / f"dst-{name}", predictors=False)
        assert_same(loaded(tmp_path / f"dst-{name}"), wanted)
        hashes[store.read_info(tmp_path / f"dst-{name}").config] = None
    assert len(hashes) == 1


def test_llava_hf_with_tied_embeddings_and_scaled_rope(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 7000.0}
    torch = torch_folders.llava_hf(tmp_path / "src", tied=True, rope=rope)
    report = convert(tmp_path / "src", tmp_path / "dst")
    decoder = store.read_config(tmp_path / "dst").decoder
    assert (decoder.tie_embeddings, decoder.head_dim, decoder.rope_theta) == (True, 12, 7000.0)
    assert decoder.rope_scaling == LinearScaling(2.0)
    params = loaded(tmp_path / "dst")
    assert "decoder/head/kernel" not in params
    np.testing.assert_array_equal(params["decoder/embedding"], torch["model.language_model.embed_tokens.weight"])
    assert report.fresh == ("image_predictor", "output_predictor")


def test_a_saved_copy_of_a_tied_head_is_carried_when_equal(tmp_path: Path) -> None:
    src = torch_folders.golden("checkpoint", tmp_path)
    torch_folders.golden("vision_tower", tmp_path)
    torch_folders.change_config(src, tie_word_embeddings=True)
    with pytest.raises(InputError, match=r"lm_head.weight differs from model.embed_tokens.weight"):
        convert(src, tmp_path / "dst")

    def tie(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]

    torch_folders.change_tensors(src, tie)
    convert(src, tmp_path / "dst")
    info = store.read_info(tmp_path / "dst")
    assert "lm_head.weight" in info.items["carried"]


def test_no_torch_is_needed_for_safetensors(tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from dynllava_jax.convert.from_torch import convert\n"
        "from pathlib import Path\n"
        f"convert(Path({str(GOLDEN / 'checkpoint')!r}), Path({str(tmp_path / 'dst')!r}))\n"
        "try: convert(Path(sys.argv[1]), Path(sys.argv[2]))\n"
        "except ValueError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(GOLDEN / "checkpoint_bin"), str(tmp_path / "other")],
        capture_output=True,
        text=True,
        check=True,
    )
    assert store.is_checkpoint(tmp_path / "dst")
    assert "pip install 'dynllava_jax[torch]'" in done.stdout


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import argparse

    from dynllava_jax.cli import convert as command

    parser = argparse.ArgumentParser()
    command.add_parser(parser.add_subparsers())
    args = parser.parse_args(["convert", "from-torch", str(GOLDEN / "checkpoint"), str(tmp_path / "dst"), "--json"])
    assert args.run(args) == 0
    assert json.loads(capsys.readouterr().out)["tensors"] == 132
