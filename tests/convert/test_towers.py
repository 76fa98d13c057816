"""Two towers, one inside the checkpoint and one given: the config kept is that of the tensors kept."""

import shutil
from pathlib import Path

import pytest

from dynllava_jax.checkpoint import store
from dynllava_jax.config.vision import VisionConfig
from dynllava_jax.convert.from_torch import Preference, convert
from dynllava_jax.convert.tower import KNOWN_CONFIGS
from dynllava_jax.errors import InputError
from tests import golden_files
from tests.convert import torch_folders
from tests.convert.torch_folders import Tensors

OTHER = {"hidden_act": "gelu", "layer_norm_eps": 1e-3, "num_attention_heads": 1}
CHOICES: tuple[Preference, ...] = ("inside", "given")


def double(tensors: Tensors) -> None:
    for name in [name for name in tensors if name.endswith("pre_layrnorm.weight")]:
        tensors[name] *= 2


def given(folder: Path, *, tensors: bool = True, config: bool = True) -> Path:
    """The golden tower with other tensors, another config, or both."""
    tower = folder / "given"
    shutil.copytree(golden_files.ROOT / "vision_tower", tower)
    if tensors:
        torch_folders.change_tensors(tower, double)
    if config:
        torch_folders.change_config(tower, **OTHER)
    return tower


def made(src: Path, tower: Path, prefer: Preference | None) -> VisionConfig:
    dst = src.parent / f"made_{prefer}"
    convert(src, dst, vision_tower=tower, prefer_tower=prefer)
    return store.read_config(dst).vision


def particulars(config: VisionConfig) -> tuple[str, float, int]:
    return config.activation, config.norm_eps, config.num_heads


def assert_each_has_its_own(src: Path, tower: Path) -> None:
    wanted = {"inside": ("quick_gelu", 1e-5, 4), "given": ("gelu", 1e-3, 1)}
    assert {prefer: particulars(made(src, tower, prefer)) for prefer in CHOICES} == wanted


@pytest.mark.parametrize("tensors", [True, False])
def test_the_folder_that_the_config_names_describes_the_tower_inside(tmp_path: Path, tensors: bool) -> None:
    torch_folders.golden("vision_tower", tmp_path)
    src, tower = torch_folders.golden("checkpoint", tmp_path), given(tmp_path, tensors=tensors)
    with pytest.raises(
        InputError, match=r"by their configs in .*activation \(quick_gelu inside, gelu given\); say which"
    ):
        made(src, tower, None)
    assert_each_has_its_own(src, tower)


def test_a_tower_inside_of_a_known_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    src, tower = torch_folders.golden("checkpoint", tmp_path), given(tmp_path)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4}
    monkeypatch.setitem(KNOWN_CONFIGS, "somebody/small", {**sizes, "patch_size": 14, "image_size": 56})
    torch_folders.change_config(src, mm_vision_tower="somebody/small")
    assert_each_has_its_own(src, tower)


def test_a_tower_inside_that_llava_hf_describes(tmp_path: Path) -> None:
    src = tmp_path / "src"
    tensors = torch_folders.llava_hf(src)
    prefix = next(name for name in tensors if name.endswith("class_embedding")).removesuffix(
        "embeddings.class_embedding"
    )
    tower = tmp_path / "given"
    tower.mkdir()
    own = {f"vision_model.{name.removeprefix(prefix)}": x for name, x in tensors.items() if name.startswith(prefix)}
    torch_folders.save_file(own, tower / "model.safetensors", {"format": "pt"})
    shutil.copy(golden_files.ROOT / "vision_tower" / "config.json", tower)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "image_size": 28, "patch_size": 14}
    torch_folders.change_config(tower, **sizes, **OTHER)
    assert_each_has_its_own(src, tower)


def test_a_config_that_nobody_knows_is_not_guessed(tmp_path: Path) -> None:
    src, tower = torch_folders.golden("checkpoint", tmp_path), given(tmp_path)
    for prefer in (None, "inside"):
        with pytest.raises(InputError, match=r"in 1 parameters .* no config .* of the one inside is known") as caught:
            made(src, tower, prefer)
        assert "name the folder with its config as mm_vision_tower" in str(caught.value)
        assert "\n" not in str(caught.value)
    assert particulars(made(src, tower, "given")) == ("gelu", 1e-3, 1)
    torch_folders.change_config(src, mm_vision_tower=str(torch_folders.golden("vision_tower", tmp_path)))
    assert particulars(made(src, tower, "inside")) == ("quick_gelu", 1e-5, 4)


def test_equal_tensors_of_which_one_config_is_known(tmp_path: Path) -> None:
    src, tower = torch_folders.golden("checkpoint", tmp_path), given(tmp_path, tensors=False)
    assert particulars(made(src, tower, None)) == ("gelu", 1e-3, 1)
