"""What was converted comes back bit by bit under its own names, or in transformers' own format."""

import dataclasses
import json
import struct
from pathlib import Path

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from dynllava_jax.checkpoint import store
from dynllava_jax.checkpoint.leaves import item_of
from dynllava_jax.checkpoint.load import load
from dynllava_jax.checkpoint.source import open_source
from dynllava_jax.cli.main import main
from dynllava_jax.config.presets import tiny
from dynllava_jax.config.vision import MlpProjector
from dynllava_jax.convert.from_torch import convert
from dynllava_jax.convert.random_weights import make_random
from dynllava_jax.convert.read_torch import TorchWeights
from dynllava_jax.convert.safetensors_writer import SafetensorsWriter, Spec
from dynllava_jax.convert.to_torch import export
from dynllava_jax.errors import InputError
from dynllava_jax.testing import synthetic_image, write_tokenizer
from tests import golden_files
from tests.checkpoint.test_store import random_leaves
from tests.convert import torch_folders
from tests.convert.torch_folders import Tensors

GOLDEN = golden_files.ROOT
DTYPES = ("float32", "bfloat16", "float16")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The golden checkpoint, converted."""
    path = tmp_path_factory.mktemp("golden") / "model"
    convert(GOLDEN / "checkpoint", path)
    return path


def content(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    weights = TorchWeights(folder)
    return {
        name: (info.dtype.name, info.shape, np.ascontiguousarray(weights.read(name)).tobytes())
        for name, info in weights.infos.items()
    }


def recast(tensors: Tensors, dtype: str) -> None:
    for name in tensors:
        if tensors[name].dtype.kind not in "iub":
            tensors[name] = tensors[name].astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_official_layout_comes_back(tmp_path: Path, dtype: str) -> None:
    src = torch_folders.golden("checkpoint", tmp_path)
    torch_folders.golden("vision_tower", tmp_path)
    torch_folders.change_tensors(src, lambda tensors: recast(tensors, dtype))
    convert(src, tmp_path / "model", prefer_tower="inside")
    seen: list[int] = []
    report = export(
        tmp_path / "model", tmp_path / "back", layout="official", shard_bytes=300_000, on_tensor=seen.append
    )
    assert content(tmp_path / "back") == content(src)
    assert sum(seen) == report.nbytes
    assert report.left_out == 0
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    shards = sorted((tmp_path / "back").glob("*.safetensors"))
    assert sorted(set(index["weight_map"].values())) == [path.name for path in shards]
    assert len(shards) > 1
    assert index["metadata"]["total_size"] == report.nbytes
    for name in ("config.json", "generation_config.json", "tokenizer.model", "tokenizer_config.json"):
        assert (tmp_path / "back" / name).read_bytes() == (src / name).read_bytes()


def test_a_tower_whose_embedding_is_read_comes_back(tmp_path: Path) -> None:
    src = torch_folders.golden("checkpoint", tmp_path)
    torch_folders.golden("vision_tower", tmp_path)
    torch_folders.change_config(src, mm_vision_select_layer=0)  # none of its layers is the model's
    convert(src, tmp_path / "model", prefer_tower="inside")
    tower = load(tmp_path / "model").vision
    images = jnp.asarray(golden_files.arrays("00_images")["a"].transpose(0, 2, 3, 1))
    recorded = golden_files.arrays("01_vision_features")["clip_hidden_0"][:, 1:]
    np.testing.assert_allclose(tower(images).features, recorded, atol=2e-5, rtol=0)
    export(tmp_path / "model", tmp_path / "back", layout="official")
    assert content(tmp_path / "back") == content(src)


@pytest.mark.parametrize("kind", ["linear", "mlp1x_gelu", None])
def test_a_projector_of_one_layer_keeps_the_spelling_of_its_config(tmp_path: Path, kind: str | None) -> None:
    src = torch_folders.golden("checkpoint", tmp_path)
    torch_folders.golden("vision_tower", tmp_path)
    torch_folders.change_config(src, mm_projector_type=kind)  # without one the official code makes it linear

    def shorten(tensors: Tensors) -> None:
        for end in ("weight", "bias"):
            first, _ = (tensors.pop(f"model.mm_projector.{number}.{end}") for number in (0, 2))
            tensors[f"model.mm_projector.{'0.' if kind == 'mlp1x_gelu' else ''}{end}"] = first

    torch_folders.change_tensors(src, shorten)
    convert(src, tmp_path / "model", prefer_tower="inside")
    export(tmp_path / "model", tmp_path / "back", layout="official")
    assert content(tmp_path / "back") == content(src)
    assert (tmp_path / "back" / "config.json").read_bytes() == (src / "config.json").read_bytes()


def test_the_copy_of_a_tied_head_is_the_embedding_as_it_became(tmp_path: Path) -> None:
    src = torch_folders.golden("checkpoint", tmp_path)
    torch_folders.golden("vision_tower", tmp_path)
    torch_folders.change_config(src, tie_word_embeddings=True)

    def tie(tensors: Tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]

    torch_folders.change_tensors(src, tie)
    convert(src, tmp_path / "model", prefer_tower="inside")
    export(tmp_path / "model", tmp_path / "same", layout="official")
    assert content(tmp_path / "same") == content(src)

    model = open_source(str(tmp_path / "model"))
    leaves = {name: leaf for part in model.read(model.shapes.keys()) for name, leaf in part.items()}
    leaves["decoder/embedding"] = leaves["decoder/embedding"] * 2  # as training does
    ordered = sorted(leaves.items(), key=lambda leaf: item_of(leaf[0]))
    extras = store.Extras({"tokenizer.model": b""}, model.facts)
    store.write(tmp_path / "trained", model.config, iter(ordered), carried=model.carried().items(), extras=extras)
    export(tmp_path / "trained", tmp_path / "back", layout="official")
    back = content(tmp_path / "back")
    assert back["lm_head.weight"] == back["model.embed_tokens.weight"] != content(src)["lm_head.weight"]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_shards_with_a_tower_apart_come_back(tmp_path: Path, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    src = torch_folders.golden("checkpoint_bin", tmp_path)
    tower = torch_folders.golden("vision_tower", tmp_path)
    torch_folders.change_tensors(tower, lambda tensors: recast(tensors, dtype))
    for file in src.glob("*.bin"):
        tensors = torch.load(file, weights_only=True)
        torch.save({name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}, file)
    convert(src, tmp_path / "model", vision_tower=tower)
    export(tmp_path / "model", tmp_path / "back", layout="official")
    assert content(tmp_path / "back") == content(src)
    assert content(tmp_path / "back" / "vision_tower") == content(tower)


@pytest.mark.parametrize("tower", ["vision_tower", "vision_tower_clipmodel"])
def test_a_tower_apart_and_buffers_come_back(tmp_path: Path, tower: str) -> None:
    pytest.importorskip("torch")
    convert(GOLDEN / "checkpoint_bin", tmp_path / "model", vision_tower=GOLDEN / tower)
    export(tmp_path / "model", tmp_path / "back", layout="official")
    assert content(tmp_path / "back") == content(GOLDEN / "checkpoint_bin")
    # A whole CLIPModel gives its tower; its text model is no part of a LLaVA.
    wanted = {name: tensor for name, tensor in content(GOLDEN / tower).items() if name.startswith("vision_model.")}
    assert content(tmp_path / "back" / "vision_tower") == wanted
    again = convert(tmp_path / "back", tmp_path / "again")
    first, second = store.read_info(tmp_path / "model"), store.read_info(tmp_path / "again")
    assert first.config == second.config
    assert first.content_hash == second.content_hash
    assert again.dropped == 0


@pytest.mark.parametrize("dtype", DTYPES)
def test_predictors_that_conversion_made_up_stay_here(tmp_path: Path, dtype: str) -> None:
    src = torch_folders.golden("checkpoint", tmp_path)
    (src / "config.json").write_text((GOLDEN / "config_llava15_base.json").read_text())

    def strip(tensors: Tensors) -> None:
        for name in [name for name in tensors if "predictor" in name]:
            del tensors[name]
        recast(tensors, dtype)

    torch_folders.change_tensors(src, strip)
    assert convert(src, tmp_path / "model", vision_tower=GOLDEN / "vision_tower", prefer_tower="inside").fresh
    report = export(tmp_path / "model", tmp_path / "back", layout="official")
    assert any("never trained" in note for note in report.notes)
    assert content(tmp_path / "back") == content(src)
    assert (tmp_path / "back" / "config.json").read_bytes() == (src / "config.json").read_bytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_llava_hf_comes_back(tmp_path: Path, dtype: str) -> None:
    pytest.importorskip("transformers")
    torch_folders.llava_hf(tmp_path / "src")
    torch_folders.change_tensors(tmp_path / "src", lambda tensors: recast(tensors, dtype))
    for name in ("chat_template.json", "chat_template.jinja"):  # the processor's, of old and new versions
        (tmp_path / "src" / name).write_text(f"{name} {{{{ messages }}}}")
    convert(tmp_path / "src", tmp_path / "model", predictors=False)
    export(tmp_path / "model", tmp_path / "back", layout="hf")
    assert content(tmp_path / "back") == content(tmp_path / "src")
    for name in ("config.json", "generation_config.json", "chat_template.json", "chat_template.jinja"):
        assert (tmp_path / "back" / name).read_bytes() == (tmp_path / "src" / name).read_bytes()


@pytest.mark.slow
def test_transformers_loads_an_official_model_as_llava_hf(model: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    from dynllava_jax.verify.cases import read_recording

    export(model, tmp_path / "hf", layout="hf", without_predictors=True)
    llava, loading = transformers.LlavaForConditionalGeneration.from_pretrained(
        tmp_path / "hf", output_loading_info=True, dtype=torch.float32
    )
    assert not loading["missing_keys"]
    assert not loading["unexpected_keys"]
    assert not loading["mismatched_keys"]
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "hf")
    assert processor.tokenizer.convert_tokens_to_ids("<image>") == llava.config.image_token_id == 512
    # The official code's own dense logits, by transformers from what we wrote.
    recording = read_recording(GOLDEN)
    case = recording.case("04_dense")
    ids = case.inputs["b1.input_ids"][:1]
    features = llava.config.image_seq_length
    (place,) = np.flatnonzero(ids[0] == -200)
    tokens = np.concatenate([ids[0, :place], np.full(features, 512), ids[0, place + 1 :]])[None]
    pixels = torch.from_numpy(case.images()[:1].transpose(0, 3, 1, 2))
    with torch.no_grad():
        logits = llava.eval()(input_ids=torch.from_numpy(tokens), pixel_values=pixels).logits[0, :, :512].numpy()
    wanted = case.outputs["b1.logits"][0]
    np.testing.assert_allclose(logits[-len(wanted) :], wanted, rtol=0, atol=2e-5 * max(1.0, np.abs(wanted).max()))


def test_the_image_token_is_the_first_that_the_tokenizer_lacks(tmp_path: Path) -> None:
    """`tokenizers` counts on from there, wherever the padded embedding ends: `<image>` must be what it makes of it."""
    transformers = pytest.importorskip("transformers")
    config = dataclasses.replace(tiny(), sparsity=tiny().sparsity.dense())
    make_random(config, tmp_path / "src", dtype="float32")
    write_tokenizer(tmp_path / "src", vocab_size=config.decoder.vocab_size - 12)
    convert(tmp_path / "src", tmp_path / "model", predictors=False)
    export(tmp_path / "model", tmp_path / "hf", layout="hf")
    processor = transformers.AutoProcessor.from_pretrained(tmp_path / "hf")
    found = processor(images=synthetic_image(), text="<image>\nWhat is there?")
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert written["image_token_index"] == config.decoder.vocab_size - 12
    assert written["text_config"]["vocab_size"] == config.decoder.vocab_size  # no row is added
    assert np.sum(np.array(found["input_ids"]) == written["image_token_index"]) == config.image_tokens
    convert(tmp_path / "hf", tmp_path / "again", predictors=False)
    assert store.read_config(tmp_path / "again").decoder == config.decoder


def test_transformers_reads_a_tower_whose_embedding_is_asked_for(tmp_path: Path) -> None:
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    config = dataclasses.replace(
        tiny(), sparsity=tiny().sparsity.dense(), vision=dataclasses.replace(tiny().vision, select_layer=0)
    )
    make_random(config, tmp_path / "hf", layout="hf", dtype="float32")
    llava = transformers.LlavaForConditionalGeneration.from_pretrained(tmp_path / "hf")
    pixels = np.random.default_rng(0).standard_normal((1, 3, 56, 56)).astype(np.float32)
    with torch.no_grad():
        features = llava.get_image_features(pixel_values=torch.from_numpy(pixels)).pooler_output[0].numpy()
    convert(tmp_path / "hf", tmp_path / "model", predictors=False)
    model = load(tmp_path / "model")
    ours = model.projector(model.vision(jnp.asarray(pixels.transpose(0, 2, 3, 1))).features)
    np.testing.assert_allclose(ours[0], features, atol=1e-5)


def test_heads_that_transformers_refuses_are_not_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decoder = dataclasses.replace(tiny().decoder, hidden_size=50, num_heads=4, num_kv_heads=4, head_dim=16)
    with pytest.raises(InputError, match="cannot express 4 decoder heads at hidden_size 50"):
        make_random(
            dataclasses.replace(tiny(), decoder=decoder, sparsity=tiny().sparsity.dense()), tmp_path / "hf", layout="hf"
        )
    assert main(["convert", "make-random", str(tmp_path / "hf"), "--preset", "tiny", "--layout", "hf"]) == 2
    assert "or a dense model (to-torch has --without-predictors for it)" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_what_llava_hf_cannot_express_is_named(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "to-torch", str(model), str(tmp_path / "hf"), "--layout", "hf"]) == 2
    assert "llava-hf cannot express image_selector 'learned'" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == set()


def test_a_model_that_came_from_nowhere(tmp_path: Path) -> None:
    """Trained from a preset: no source's names or files, so the usual ones."""
    store.write(tmp_path / "model", tiny(), random_leaves())
    report = export(tmp_path / "model", tmp_path / "back", layout="official", dtype="bfloat16")
    assert any("unused layers" in note for note in report.notes)
    assert {info.dtype.name for info in TorchWeights(tmp_path / "back").infos.values()} == {"bfloat16"}
    convert(tmp_path / "back", tmp_path / "again", dtype="float32")
    config = store.read_config(tmp_path / "again")
    assert (config.decoder, config.sparsity, config.vision) == (tiny().decoder, tiny().sparsity, tiny().vision)
    assert config.projector == MlpProjector()


def test_a_killed_export_goes_on(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dynllava_jax.convert import unfinished

    count = 0

    def stop(nbytes: int) -> None:
        nonlocal count
        count += 1
        if count == 60:
            raise KeyboardInterrupt

    monkeypatch.setattr(unfinished.shutil, "rmtree", lambda *args, **kwargs: None)  # as a kill does: nothing is cleared
    with pytest.raises(KeyboardInterrupt):
        export(model, tmp_path / "back", layout="official", on_tensor=stop)
    monkeypatch.undo()
    assert not (tmp_path / "back").exists()
    report = export(model, tmp_path / "back", layout="official")
    assert 60 <= report.resumed < 150
    assert content(tmp_path / "back") == content(GOLDEN / "checkpoint")
    assert {path.name for path in tmp_path.iterdir()} == {"back"}


def test_a_file_that_was_not_whole_when_it_was_killed(tmp_path: Path) -> None:
    specs = [Spec("a", np.dtype(np.float32), (3,)), Spec("b", np.dtype(np.float32), (2,))]
    tensors = {"a": np.arange(3, dtype=np.float32), "b": np.ones(2, np.float32)}
    SafetensorsWriter(tmp_path, specs).close()
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:10])
    writer = SafetensorsWriter(tmp_path, specs)
    for name, tensor in tensors.items():
        writer.put(name, tensor)
    writer.finish()
    for name, tensor in torch_folders.tensors_of(tmp_path).items():
        np.testing.assert_array_equal(tensor, tensors[name])


def test_an_export_that_fails_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(GOLDEN / "checkpoint", tmp_path / "model")
    array = next(path for path in (tmp_path / "model" / "decoder_003").rglob("d/*") if path.is_file())
    damaged = bytearray(array.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    array.write_bytes(damaged)
    with pytest.raises(InputError, match="decoder_003"):
        export(tmp_path / "model", tmp_path / "back", layout="official")
    assert {path.name for path in tmp_path.iterdir()} == {"model"}


def test_files_are_what_the_safetensors_package_reads(model: Path, tmp_path: Path) -> None:
    export(model, tmp_path / "back", layout="official")
    read, wanted = torch_folders.tensors_of(tmp_path / "back"), torch_folders.tensors_of(GOLDEN / "checkpoint")
    assert read.keys() == wanted.keys()
    for name, tensor in wanted.items():
        np.testing.assert_array_equal(read[name], tensor)
    with (tmp_path / "back" / "model.safetensors").open("rb") as file:
        assert struct.unpack("<Q", file.read(8))[0] % 8 == 0
