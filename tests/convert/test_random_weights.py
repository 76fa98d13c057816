"""`dynllava convert make-random`: the true shapes, the same bytes for the same seed, a full round trip."""

import dataclasses
import gc
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dynllava_jax.checkpoint import store
from dynllava_jax.checkpoint.leaves import leaf_shapes
from dynllava_jax.cli.main import main
from dynllava_jax.config.presets import get_preset, llava_1_5_13b, tiny
from dynllava_jax.convert.export_plan import chosen, make_plan
from dynllava_jax.convert.from_torch import convert
from dynllava_jax.convert.random_weights import make_random
from dynllava_jax.convert.read_torch import TorchWeights
from dynllava_jax.convert.safetensors_writer import Spec
from dynllava_jax.convert.to_torch import export
from dynllava_jax.errors import InputError
from tests.convert.test_to_torch import content
from tests.golden_files import ROOT


def test_a_round_trip(tmp_path: Path) -> None:
    assert main(["convert", "make-random", str(tmp_path / "torch"), "--preset", "tiny", "--dtype", "bfloat16"]) == 0
    weights = TorchWeights(tmp_path / "torch")
    assert {info.dtype.name for info in weights.infos.values()} == {"bfloat16"}
    assert all(np.isfinite(weights.read(name).astype(np.float32)).all() for name in weights.infos)
    convert(tmp_path / "torch", tmp_path / "model")
    found = store.read_config(tmp_path / "model")
    assert (found.decoder, found.vision, found.sparsity) == (tiny().decoder, tiny().vision, tiny().sparsity)
    assert len(store.read_carried(tmp_path / "model", store.read_info(tmp_path / "model"))) == 18
    export(tmp_path / "model", tmp_path / "back", layout="official")
    for folder in (".", "vision_tower"):
        assert content(tmp_path / "back" / folder) == content(tmp_path / "torch" / folder)
    make_random(tiny(), tmp_path / "again", dtype="bfloat16")
    assert content(tmp_path / "again") == content(tmp_path / "torch")


@pytest.mark.parametrize("layer", [0, -4])
def test_a_tower_none_of_whose_layers_is_read(tmp_path: Path, layer: int) -> None:
    config = dataclasses.replace(tiny(), vision=dataclasses.replace(tiny().vision, select_layer=layer))
    assert config.layers_used == 0
    make_random(config, tmp_path / "torch")
    convert(tmp_path / "torch", tmp_path / "model")
    export(tmp_path / "model", tmp_path / "back", layout="official")
    assert content(tmp_path / "back" / "vision_tower") == content(tmp_path / "torch" / "vision_tower")


@pytest.mark.parametrize("preset", ["llava_1_5_7b", "llava_1_5_13b"])
def test_sizes_of_the_published_models(preset: str) -> None:
    """By shapes alone. The released 7B has 13.5 GB in float16 without its tower, the 13B 26.0 GB."""
    config = get_preset(preset)
    leaves = {name: Spec(name, np.dtype(np.float16), shape) for name, shape in leaf_shapes(config).items()}
    plan = make_plan(config, chosen("official", None), None, leaves, [])
    nbytes = sum(tensor.spec.nbytes for tensor in plan.tensors if not tensor.folder)
    assert nbytes / 1e9 == pytest.approx(26.1 if config == llava_1_5_13b() else 13.5, abs=0.05)


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dynllava_jax.convert import space

    make_random(tiny(), tmp_path / "torch")
    monkeypatch.setattr(space, "_SPARE", 1 << 60)
    for run in (
        lambda: make_random(tiny(), tmp_path / "other"),
        lambda: convert(tmp_path / "torch", tmp_path / "other"),
    ):
        with pytest.raises(InputError, match=r"has .* GB free, but .* GB are to be written"):
            run()
    assert [path.name for path in tmp_path.iterdir()] == ["torch"]


def test_a_seed_below_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "make-random", str(tmp_path / "torch"), "--preset", "tiny", "--seed", "-1"]) == 2
    assert "seed must be 0 or more, not -1" in capsys.readouterr().err


def test_little_room_is_told_in_figures_that_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dynllava_jax.convert import space

    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: SimpleNamespace(free=32 << 20))
    with pytest.raises(InputError, match=r"has 0\.0336 GB free, but 0\.0691 GB are to be written"):
        space.check(tmp_path / "dst", 2_000_000)


def test_what_breaks_off_leaves_no_file_open_and_nothing_made(tmp_path: Path) -> None:
    def stop(nbytes: int) -> None:
        raise KeyboardInterrupt

    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with pytest.raises(KeyboardInterrupt) as caught:
            make_random(tiny(), str(tmp_path / "torch"), on_tensor=stop)
        del caught
        gc.collect()
    assert [str(warning.message) for warning in seen] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("unchecked")
def test_words_that_there_are_not_are_refused_and_nothing_is_made(tmp_path: Path) -> None:
    unknown: Any = "x"
    with pytest.raises(InputError, match="layout must be one of official, hf, not 'x'"):
        make_random(tiny(), tmp_path / "torch", layout=unknown)
    with pytest.raises(InputError, match="dtype must be one of float32, bfloat16, float16, not 'float64'"):
        make_random(tiny(), tmp_path / "torch", dtype="float64")
    with pytest.raises(InputError, match="prefer_tower must be one of given, inside, not 'x'"):
        convert(ROOT / "checkpoint", tmp_path / "model", vision_tower=ROOT / "vision_tower", prefer_tower=unknown)
    assert list(tmp_path.iterdir()) == []
