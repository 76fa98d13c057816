"""How the fixtures of `formats/` were made, one for each format version: python -m tests.checkpoint.formats NAME.

A fixture is written once, by the version of the package that had its format, and never again.
"""

import dataclasses
import sys
from pathlib import Path

import numpy as np

from dynllava_jax.checkpoint import store
from dynllava_jax.checkpoint.leaves import item_of, leaf_shapes
from dynllava_jax.config.decoder import DecoderConfig
from dynllava_jax.config.model import ImagePrep, ModelConfig
from dynllava_jax.config.presets import tiny
from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.config.vision import VisionConfig

FOLDER = Path(__file__).parent / "formats"

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


def main() -> None:
    store.write(FOLDER / sys.argv[1], CONFIG, leaves().items(), extras=store.Extras({"config.json": b"{}"}))


if __name__ == "__main__":
    main()
