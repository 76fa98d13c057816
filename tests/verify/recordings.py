"""Folders of recordings for tests: parts of the goldens, and a model of other shapes fed with the goldens' inputs."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from tests.golden_files import ROOT

SPARSE = {"sparse_layer": 1, "vision_keep_rate": 0.29}
IMAGES = {"a": 2, "b": 3}
GROUPS, GRID = 2, 6
"""The other model: key heads, patches along a side (the goldens have 4 and 4, and sparse layer 2)."""


def part(folder: Path, *cases: str) -> Path:
    """The goldens with these cases only, and without what other recordings may lack (`checkpoint_bin` and so on)."""
    (folder / "cases").mkdir(parents=True)
    for name in ("checkpoint", "vision_tower"):
        shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "manifest.json", folder)
    for case in ("00_images", *cases):
        for file in (ROOT / "cases").glob(f"{case}.*"):
            shutil.copy(file, folder / "cases")
    return folder


def change_arrays(file: Path, **arrays: np.ndarray) -> None:
    with np.load(file) as old:
        np.savez(file, **{**old, **arrays})


def change_json(file: Path, **values: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def other_shapes(folder: Path, *cases: str) -> Path:
    """Grouped heads, 36 image tokens, sparse layer 1, another keep rate; the recorded outputs do not belong to it."""
    part(folder, *cases)
    random = np.random.default_rng(1)
    for file in (folder / "checkpoint" / "model.safetensors", folder / "vision_tower" / "model.safetensors"):
        tensors = load_file(file)
        for name, value in tensors.items():
            if name.endswith("position_embedding.weight"):
                rows = np.random.default_rng(2).standard_normal((GRID**2 + 1, value.shape[1]))
                tensors[name] = rows.astype(value.dtype)
            elif name.startswith("model.layers.") and name.endswith(("k_proj.weight", "v_proj.weight")):
                tensors[name] = np.ascontiguousarray(value[: len(value) * GROUPS // 4])
        save_file(tensors, file, {"format": "pt"})
    config = json.loads((folder / "checkpoint" / "config.json").read_text())
    sparse = config["sparse_config"] | SPARSE
    change_json(folder / "checkpoint" / "config.json", num_key_value_heads=GROUPS, sparse_config=sparse)
    size = GRID * 14
    change_json(folder / "vision_tower" / "config.json", image_size=size)
    change_json(
        folder / "vision_tower" / "preprocessor_config.json",
        size={"shortest_edge": size},
        crop_size={"height": size, "width": size},
    )
    pixels = {name: random.standard_normal((rows, 3, size, size)).astype(np.float32) for name, rows in IMAGES.items()}
    change_arrays(folder / "cases" / "00_images.npz", **pixels)
    for case in cases:
        file = folder / "cases" / f"{case}.json"
        if (effective := json.loads(file.read_text())["effective_sparse_config"]) is not None:
            change_json(file, effective_sparse_config=effective | SPARSE)
        info = json.loads(file.read_text())["info"]
        for situation in info.values():
            if isinstance(situation, dict) and "tokenizer_model_max_length" in situation:
                situation["tokenizer_model_max_length"] += GRID**2 - 4**2  # the cut stays behind the longer image
        change_json(file, info=info)
    return folder
