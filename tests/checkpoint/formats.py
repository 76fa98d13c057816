"""How the fixtures of `formats/` were made, one for each format version: python -m tests.checkpoint.formats NAME.

A fixture is written once, by the version of the package that had its format, and never again.
"""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np
from etils import epath
from flax import nnx

from dynllava_jax.checkpoint import store, trained
from dynllava_jax.checkpoint.leaves import item_of, leaf_shapes, targets
from dynllava_jax.config.decoder import DecoderConfig
from dynllava_jax.config.model import ImagePrep, ModelConfig
from dynllava_jax.config.presets import tiny
from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.config.vision import VisionConfig
from dynllava_jax.training.checkpoint import TrainingCheckpoints

FOLDER = Path(__file__).parent / "formats"

STEP = 3
"""Of the training fixtures."""

CONFIG = ModelConfig(
    vision=VisionConfig(hidden_size=8, intermediate_size=8, num_layers=2, num_heads=2, image_size=28, patch_size=14),
    decoder=DecoderConfig(
        vocab_size=24, hidden_size=8, intermediate_size=8, num_layers=2, num_heads=2, num_kv_heads=2, head_dim=4
    ),
    sparsity=dataclasses.replace(SparsityConfig().dense(), sparse_layer=1),
    image_prep=ImagePrep(resize=28, crop=28),
    text_prep=tiny().text_prep,
)


def leaves() -> dict[str, np.ndarray]:
    """The content of every fixture."""
    rng = np.random.default_rng(0)
    shapes = leaf_shapes(CONFIG)
    made = {name: rng.integers(-8, 8, shapes[name]).astype(np.float32) / 8 for name in sorted(shapes)}
    return {name: made[name] for name in sorted(made, key=lambda name: (item_of(name), name))}


def parameters() -> dict[str, np.ndarray]:
    """The same content, as a training run holds it: by parameter, stacks together."""
    by_leaf = leaves()
    return {
        target.path: np.stack([by_leaf[leaf] for leaf in target.leaves]) if target.stacked else by_leaf[target.path]
        for target in targets(CONFIG)
    }


def _training(folder: Path) -> None:
    state = nnx.from_flat_state([(tuple(path.split("/")), nnx.Param(x)) for path, x in parameters().items()])
    with TrainingCheckpoints(folder, CONFIG) as checkpoints:
        checkpoints.save_async(STEP, jax.device_put(state), {"count": jax.numpy.int32(STEP)}, {"data": "da7a"})
        checkpoints.wait()
        info = checkpoints.info(STEP)
    step = epath.Path(folder) / trained.CHECKPOINTS / str(STEP)
    for file in Path(step).rglob("commit_success.txt"):  # it names the folder in which it was made
        file.write_text(f"Checkpoint commit was successful to formats/{folder.name}")
    trained.seal(step, info)


def main() -> None:
    name = sys.argv[1]
    if name.startswith("training"):
        _training(FOLDER / name)
    else:
        store.write(FOLDER / name, CONFIG, leaves().items(), extras=store.Extras({"config.json": b"{}"}))


if __name__ == "__main__":
    main()
