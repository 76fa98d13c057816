"""What a step of the tower's pretraining sees: pictures, and for every patch what it shows and where it lies.

Most steps see small windows of crowded pictures, each cut out somewhere else: attention over all patches costs far
more, and scenes are mostly background. The last steps see whole scenes.

Every step's pictures follow from the seed and the step's number. B pictures, P patches, Y X pixels.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from dynllava_jax.config.model import ModelConfig
from dynllava_jax.demo.catalogue import BACKGROUNDS, COLOURS, OBJECTS
from dynllava_jax.demo.render import patch_shares, render
from dynllava_jax.demo.scenes import draw
from dynllava_jax.demo.windows import Window, draw_window

NONE = -1
PARTS = 3
"""A window's side is this part of a picture's."""


class Batch(NamedTuple):
    """Normalised pixels, the patches [y, x] at which the pictures begin, and a label per patch for each of `heads`
    (NONE: no such thing there).
    """

    pixels: Float[np.ndarray, "B Y X 3"]
    corners: Int[np.ndarray, "B 2"]
    labels: dict[str, Int[np.ndarray, "B P"]]


def heads(config: ModelConfig) -> dict[str, int]:
    """What is asked about a patch, and how many answers there are; thing 0 is the background."""
    return {
        "thing": len(OBJECTS) + 1,
        "colour": len(COLOURS),
        "size": 2,
        "background": len(BACKGROUNDS),
        "y": config.vision.grid,
        "x": config.vision.grid,
    }


def batch(config: ModelConfig, seed: int, step: int, count: int, *, whole: bool) -> Batch:
    """`count` windows, or whole scenes with three things or more."""
    rng = np.random.default_rng((seed, step))
    grid, patch = config.vision.grid, config.vision.patch_size
    side = grid if whole else grid // PARTS
    corners = rng.integers(0, grid - side + 1, (count, 2))
    drawn = [
        _whole(rng) if whole else draw_window(rng, int(top) * patch, int(left) * patch, side * patch)
        for top, left in corners
    ]
    pixels = np.stack([np.asarray(one.picture, np.float32) / 255 for one in drawn])
    prep = config.image_prep
    pixels = (pixels - np.array(prep.mean, np.float32)) / np.array(prep.std, np.float32)
    shown = np.stack([_shown(one, patch) for one in drawn])
    y, x = np.divmod(np.arange(side * side), side)
    where = np.stack([corners[:, :1] + y, corners[:, 1:] + x], -1)
    labels = np.concatenate([shown, where], -1).astype(np.int32)
    return Batch(pixels, corners, {name: labels[..., head] for head, name in enumerate(heads(config))})


def _whole(rng: np.random.Generator) -> Window:
    # Crowded scenes teach more a step.
    while len((scene := draw(rng, "train")).placements) < 3:
        pass
    return Window(*render(scene), scene.background, scene.placements)


def _shown(window: Window, patch: int) -> Int[np.ndarray, "P 4"]:
    """Thing, colour, size and background of the one to which most of a patch belongs."""
    described = [(0, NONE, NONE, BACKGROUNDS.index(window.background))]
    for one in window.things:
        colour = NONE if one.colour is None else COLOURS.index(one.colour)
        described.append((1 + OBJECTS.index(one.thing), colour, int(one.size == "large"), NONE))
    owner = np.argmax(patch_shares(window.mask, patch), axis=0)
    return np.array(described, np.int32)[owner]
