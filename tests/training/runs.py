"""A little data set, a checkpoint, and the command that trains on them."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from dynllava_jax.checkpoint import store
from dynllava_jax.checkpoint.leaves import item_of, leaf_shapes
from dynllava_jax.cli.main import main
from dynllava_jax.config.presets import tiny
from dynllava_jax.testing.images import synthetic_image

CONFIG = str(Path(__file__).parents[2] / "configs" / "tiny.py")
_WORDS = ("red", "cat", "blue", "dog", "green", "cup", "small", "tree", "near", "the", "old", "house", "boat", "hat")


def write_data(folder: Path, count: int = 24, seed: int = 0) -> Path:
    """LLaVA JSON with images; answers short and long, one sample in six without an image."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(seed)

    def words(least: int, most: int) -> str:
        return " ".join(draw.choice(_WORDS, draw.integers(least, most)))

    records = []
    for index in range(count):
        record: dict[str, Any] = {"id": f"s{index}"}
        mark = ""
        if index % 6:
            record["image"], mark = f"{index}.png", "<image>\n"
            synthetic_image(index, 60, 40).save(folder / f"{index}.png")
        record["conversations"] = [
            {"from": "human", "value": f"{mark}what is {words(1, 5)}?"},
            {"from": "gpt", "value": words(1, 30)},
        ]
        records.append(record)
    file = folder / "data.json"
    file.write_text(json.dumps(records))
    return file


def write_checkpoint(folder: Path, tokenizer_folder: Path, seed: int = 0) -> Path:
    """Of the tiny model, every value drawn."""
    draw = np.random.default_rng(seed)
    shapes = sorted(leaf_shapes(tiny()).items(), key=lambda leaf: item_of(leaf[0]))
    leaves = ((name, 0.1 * draw.standard_normal(shape).astype(np.float32)) for name, shape in shapes)
    files = {file.name: file.read_bytes() for file in tokenizer_folder.iterdir()}
    store.write(folder, tiny(), leaves, extras=store.Extras(files=files))
    return folder


def command(data: Path, workdir: Path, *more: str, checkpoint: Path | None = None) -> list[str]:
    init = [] if checkpoint is None else [f"--config.init.checkpoint={checkpoint}"]
    return [
        *("train", f"--config={CONFIG}", f"--workdir={workdir}", f"--config.data.source={data}"),
        *(f"--config.data.images={data.parent}", f"--config.data.index={data.parent / 'index'}"),
        *("--config.mesh=data=1", "--config.data.max_shapes=1", *init, *more),
    ]


def run(data: Path, workdir: Path, *more: str, checkpoint: Path | None = None) -> int:
    return main(command(data, workdir, *more, checkpoint=checkpoint))


def records(workdir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def saved(workdir: Path) -> list[int]:
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdecimal())
