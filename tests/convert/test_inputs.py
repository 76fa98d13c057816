"""Checkpoints that are a part of a model, or more than one, or not here."""

import fnmatch
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynllava_jax.checkpoint import store
from dynllava_jax.convert import hub
from dynllava_jax.convert.export_plan import Family
from dynllava_jax.convert.from_torch import convert
from dynllava_jax.convert.to_torch import export
from dynllava_jax.data.prompt import round_ids
from dynllava_jax.data.templates import get_template
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.errors import InputError
from tests import golden_files
from tests.convert import torch_folders
from tests.convert.test_from_torch import loaded
from tests.convert.torch_folders import Tensors, save_file

GOLDEN = golden_files.ROOT
TOWER = GOLDEN / "vision_tower"
PREFIX = "base_model.model."
TARGET = "model.layers.1.self_attn.q_proj"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The golden model as a bare Llama."""
    folder = torch_folders.golden("checkpoint", tmp_path)
    torch_folders.change_tensors(folder, lambda tensors: strip(tensors))
    return folder


def strip(tensors: Tensors) -> None:
    for name in [name for name in tensors if any(part in name for part in ("predictor", "projector", "tower"))]:
        del tensors[name]


def part(tmp_path: Path, **files: Tensors) -> Path:
    """A folder with LLaVA-1.5's config and some weights."""
    folder = tmp_path / "part"
    folder.mkdir()
    (folder / "config.json").write_text((GOLDEN / "config_llava15_base.json").read_text())
    for name, tensors in files.items():
        save_file(tensors, folder / f"{name}.safetensors")
    return folder


def projector() -> Tensors:
    tensors = torch_folders.tensors_of(GOLDEN / "checkpoint")
    return {name: tensor for name, tensor in tensors.items() if "mm_projector" in name}


def adapters(rank: int = 4) -> Tensors:
    rng = np.random.default_rng(0)
    return {
        f"{PREFIX}{TARGET}.lora_A.weight": rng.standard_normal((rank, 64), np.float32),
        f"{PREFIX}{TARGET}.lora_B.weight": rng.standard_normal((64, rank), np.float32),
    }


def lora(tmp_path: Path, tensors: Tensors, **config: Any) -> Path:
    trained = {PREFIX + name: tensor for name, tensor in projector().items()}
    folder = part(tmp_path, adapter_model=tensors, non_lora_trainables=trained)
    (folder / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 8, "bias": "none"} | config))
    return folder


def test_lora_is_merged_and_the_rest_replaced(tmp_path: Path, base: Path) -> None:
    src = lora(tmp_path, adapters())
    report = convert(src, tmp_path / "model", base=base, vision_tower=TOWER, predictors=False)
    assert any("laid over" in note for note in report.notes)
    found = loaded(tmp_path / "model")
    torch = torch_folders.tensors_of(GOLDEN / "checkpoint")
    a, b = adapters().values()
    wanted = torch[f"{TARGET}.weight"] + 2.0 * (b @ a)
    np.testing.assert_allclose(found["decoder/shallow/attention/query/kernel"][1], wanted.T, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(
        found["decoder/shallow/attention/query/kernel"][0], torch["model.layers.0.self_attn.q_proj.weight"].T
    )
    np.testing.assert_array_equal(found["projector/layers/0/kernel"], torch["model.mm_projector.0.weight"].T)


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        ({"bias": "all"}, "bias 'all' is not supported"),
        ({"use_dora": True}, "use_dora True is not supported"),
        ({"peft_type": "ADALORA"}, "peft_type 'ADALORA' is not supported"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication .* is not supported"),
        ({"alora_invocation_tokens": [5, 7]}, r"alora_invocation_tokens \[5, 7\] is not supported"),
        ({"kasa_config": {"beta": 1e-4}}, "kasa_config .* is not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4' has changed the base's weights too"),
        ({"init_lora_weights": "lora_ga"}, "'lora_ga' has changed the base's weights too"),
        ({"r": 3}, "does not fit adapters"),
        ({"r": "four"}, "must give r and lora_alpha as numbers"),
    ],
)
def test_adapters_that_cannot_be_merged(tmp_path: Path, base: Path, change: dict[str, Any], needle: str) -> None:
    with pytest.raises(InputError, match=needle):
        convert(lora(tmp_path, adapters(), **change), tmp_path / "model", base=base, vision_tower=TOWER)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("own", [False, True])
def test_an_adapted_head(tmp_path: Path, base: Path, own: bool) -> None:
    """The head itself may be saved beside its adapters, as peft does with embeddings."""
    rng = np.random.default_rng(1)
    start = torch_folders.tensors_of(base)["lm_head.weight"]
    a, b = rng.standard_normal((4, start.shape[1]), np.float32), rng.standard_normal((start.shape[0], 4), np.float32)
    saved = {"lora_A.weight": a, "lora_B.weight": b}
    if own:
        start = saved["base_layer.weight"] = rng.standard_normal(start.shape, np.float32)
    src = lora(tmp_path, {f"{PREFIX}lm_head.{name}": tensor for name, tensor in saved.items()})
    convert(src, tmp_path / "model", base=base, vision_tower=TOWER, predictors=False)
    found = loaded(tmp_path / "model")["decoder/head/kernel"]
    np.testing.assert_allclose(found, (start + 2.0 * (b @ a)).T, rtol=1e-6, atol=1e-6)


def test_what_was_adapted_and_trained_too(tmp_path: Path, base: Path) -> None:
    """LLaVA's training sets its projector free after the adapters are made, and then saves it by peft's names."""
    rng = np.random.default_rng(2)
    part = "model.mm_projector.2"
    trained = {name: rng.standard_normal(x.shape, np.float32) for name, x in projector().items()}
    start = trained[f"{part}.weight"]
    a, b = rng.standard_normal((4, start.shape[1]), np.float32), rng.standard_normal((start.shape[0], 4), np.float32)
    src = lora(tmp_path, {f"{PREFIX}{part}.lora_A.weight": a, f"{PREFIX}{part}.lora_B.weight": b})
    inner = {name: name.replace(f"{part}.", f"{part}.base_layer.") for name in trained}
    tensors = {PREFIX + inner[name]: tensor for name, tensor in trained.items()}
    save_file(tensors, src / "non_lora_trainables.safetensors")
    convert(src, tmp_path / "model", base=base, vision_tower=TOWER, predictors=False)
    found = loaded(tmp_path / "model")
    np.testing.assert_allclose(found["projector/layers/1/kernel"], (start + 2.0 * (b @ a)).T, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found["projector/layers/1/bias"], trained[f"{part}.bias"])
    np.testing.assert_array_equal(found["projector/layers/0/kernel"], trained["model.mm_projector.0.weight"].T)


def test_a_part_takes_tokenizer_and_preprocessor_from_its_base(tmp_path: Path, base: Path) -> None:
    """LLaVA's training saves neither with adapters or a projector, and its own code takes the base's."""
    (base / "preprocessor_config.json").write_text((TOWER / "preprocessor_config.json").read_text())
    src = lora(tmp_path, adapters())
    report = convert(src, tmp_path / "model", base=base, vision_tower=TOWER)
    assert any(f"no tokenizer in {src}: that of {base} is taken" in note for note in report.notes)
    files = tmp_path / "model" / store.FILES
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "preprocessor_config.json"):
        assert (files / name).read_bytes() == (base / name).read_bytes()
    assert (files / "config.json").read_bytes() == (src / "config.json").read_bytes()
    tokenizer = Tokenizer.load(files)
    assert store.read_config(tmp_path / "model").text_prep.round_ids == round_ids(tokenizer, get_template("vicuna_v1"))
    # Its own goes first, and is not mixed with the base's.
    (src / "tokenizer.model").write_bytes((base / "tokenizer.model").read_bytes())
    report = convert(src, tmp_path / "other", base=base, vision_tower=TOWER)
    assert not [note for note in report.notes if "no tokenizer" in note]
    assert not (tmp_path / "other" / store.FILES / "tokenizer_config.json").exists()


def test_adapters_that_changed_their_scale_are_merged_anew(
    tmp_path: Path, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed conversion left was merged with the scale that it read."""
    src = lora(tmp_path, adapters())
    with monkeypatch.context() as patch:
        patch.setattr(store, "remove_tree", lambda folder: None)  # as a kill does: nothing is cleared
        with pytest.raises(KeyboardInterrupt):
            convert(src, tmp_path / "model", base=base, vision_tower=TOWER, on_item=stop_after(3))
    lora_config = json.loads((src / "adapter_config.json").read_text())
    (src / "adapter_config.json").write_text(json.dumps(lora_config | {"lora_alpha": 80}))
    convert(src, tmp_path / "model", base=base, vision_tower=TOWER)
    convert(src, tmp_path / "fresh", base=base, vision_tower=TOWER)
    hashes = {store.read_info(tmp_path / name).content_hash for name in ("model", "fresh")}
    assert len(hashes) == 1


def stop_after(count: int) -> Callable[[int], None]:
    left = iter(range(count - 1))

    def stop(nbytes: int) -> None:
        if next(left, None) is None:
            raise KeyboardInterrupt

    return stop


def test_adapters_of_another_model(tmp_path: Path, base: Path) -> None:
    tensors = {name.replace("layers.1", "layers.7"): tensor for name, tensor in adapters().items()}
    with pytest.raises(InputError, match=r"layers\.7\.self_attn\.q_proj\.weight is not in the base"):
        convert(lora(tmp_path, tensors), tmp_path / "model", base=base, vision_tower=TOWER)


def test_a_projector_alone(tmp_path: Path, base: Path) -> None:
    src = part(tmp_path, mm_projector=projector())
    with pytest.raises(InputError, match=r"holds a part of a model only; give the folder of .* with --base"):
        convert(src, tmp_path / "model", vision_tower=TOWER)
    convert(src, tmp_path / "model", base=base, vision_tower=TOWER, predictors=False)
    torch = torch_folders.tensors_of(GOLDEN / "checkpoint")
    found = loaded(tmp_path / "model")
    np.testing.assert_array_equal(found["projector/layers/1/kernel"], torch["model.mm_projector.2.weight"].T)


def test_a_base_where_none_is_needed(tmp_path: Path, base: Path) -> None:
    with pytest.raises(InputError, match="--base has no meaning"):
        convert(GOLDEN / "checkpoint", tmp_path / "model", base=base)


@pytest.mark.slow
def test_a_bare_language_model_gets_a_projector(tmp_path: Path, base: Path) -> None:
    config = json.loads((base / "config.json").read_text())
    kept = {key: value for key, value in config.items() if not key.startswith("mm_") and key != "sparse_config"}
    (base / "config.json").write_text(json.dumps(kept | {"model_type": "llama"}))
    report = convert(base, tmp_path / "model", vision_tower=TOWER)
    assert report.fresh == ("image_predictor", "output_predictor", "projector")
    info = store.read_info(tmp_path / "model")
    assert info.config.projector.depth == 2  # pyright: ignore[reportAttributeAccessIssue]
    from dynllava_jax.checkpoint.source import open_source
    from dynllava_jax.inference.load import without_untrained

    assert without_untrained(open_source(tmp_path / "model")).sparsity.image_selector is None

    # The way out has the projector, and says what it is worth.
    layouts: tuple[Family, ...] = ("official", "hf")
    for layout in layouts:
        exported = export(tmp_path / "model", tmp_path / layout, layout=layout)
        assert any("the projector is the one that conversion made up" in note for note in exported.notes)
        convert(tmp_path / layout, tmp_path / f"{layout} again", predictors=False)
        np.testing.assert_array_equal(
            loaded(tmp_path / f"{layout} again")["projector/layers/1/kernel"],
            loaded(tmp_path / "model")["projector/layers/1/kernel"],
        )


def test_a_bare_mistral_has_mistrals_defaults(tmp_path: Path, base: Path) -> None:
    torch_folders.change_config(base, model_type="mistral", sparse_config=None, max_position_embeddings=None)
    with pytest.raises(InputError, match="sliding_window 4096 is not supported in a context of 131072 tokens"):
        convert(base, tmp_path / "model", vision_tower=TOWER)


def test_llava_1_6_keeps_its_newline_and_says_what_it_loses(tmp_path: Path) -> None:
    from tests.convert.test_to_torch import content

    src = torch_folders.golden("checkpoint", tmp_path)
    torch_folders.golden("vision_tower", tmp_path)
    (src / "config.json").write_text((GOLDEN / "config_llava15_base.json").read_text())
    torch_folders.change_config(
        src,
        model_type="llava_mistral",
        image_aspect_ratio="anyres",
        mm_patch_merge_type="spatial_unpad",
        sliding_window=4096,
    )

    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if "predictor" in name]:
            del tensors[name]
        tensors["model.image_newline"] = np.ones(64, np.float32)

    torch_folders.change_tensors(src, change)
    report = convert(src, tmp_path / "model", predictors=False)
    assert any("tiles (anyres)" in note for note in report.notes)
    export(tmp_path / "model", tmp_path / "back", layout="official")
    assert content(tmp_path / "back") == content(src)
    assert (tmp_path / "back" / "config.json").read_bytes() == (src / "config.json").read_bytes()


def test_hub_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked: list[list[str]] = []

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return str(GOLDEN / ("checkpoint" if name == "some/model" else "checkpoint_bin"))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.locate("some/model") == GOLDEN / "checkpoint"
    assert hub.locate("other/model") == GOLDEN / "checkpoint_bin"
    assert ["*.bin" in patterns for patterns in asked] == [False, False, True]

    def fail(name: str, *, allow_patterns: list[str]) -> str:
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError, match=r"no folder some/model, and the Hugging Face hub .* no route to host"):
        convert("some/model", tmp_path / "model")


@pytest.mark.parametrize(
    "files",
    [
        ("adapter_model.safetensors", "non_lora_trainables.bin"),
        ("adapter_model.bin", "non_lora_trainables.bin"),
        ("mm_projector.bin",),
        ("model.safetensors", "mm_projector.bin"),
    ],
)
def test_all_of_a_part_comes_from_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: tuple[str, ...]
) -> None:
    """Adapters are safetensors by now; what LLaVA's training saves beside them is still pickled."""
    import huggingface_hub

    def download(name: str, *, allow_patterns: list[str]) -> str:
        for file in (*files, "config.json", "adapter_config.json"):
            if any(fnmatch.fnmatch(file, pattern) for pattern in allow_patterns):
                (tmp_path / file).touch()
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = {path.name for path in Path(hub.locate("some/part")).iterdir()}
    assert found == {*files, "config.json", "adapter_config.json"}
