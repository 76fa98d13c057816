"""Parts of crowded pictures for the tower's pretraining: most of what they show are things, so a step teaches more.

Things stand anywhere, cut off and before one another, but never on a background and at a place that belong to the test
split. Y, X pixels.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from dynllava_jax.demo.catalogue import BACKGROUNDS, OBJECTS, Background
from dynllava_jax.demo.render import cutout, photograph, place_of
from dynllava_jax.demo.scenes import Placement, allowed, place_at_random

_MOST = 3


class Window(NamedTuple):
    """`mask` is 0 where the background is seen and i + 1 where `things[i]` is; their `shift` means nothing."""

    picture: Image.Image
    mask: UInt8[np.ndarray, "Y X"]
    background: Background
    things: tuple[Placement, ...]


def draw_window(rng: np.random.Generator, top: int, left: int, side: int) -> Window:
    """The `side` x `side` pixels at this corner of a picture [336, 336], with one to three things."""
    number = int(rng.integers(len(BACKGROUNDS)))
    background = BACKGROUNDS[number]
    photo = photograph(background)
    x, y = (int(rng.integers(0, size - side + 1)) for size in photo.size)
    picture, mask = photo.crop((x, y, x + side, y + side)), Image.new("L", (side, side))
    if rng.random() < 0.5:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    things = []
    for owner in range(1, int(rng.integers(1, _MOST + 1)) + 1):
        x, y = (int(centre) for centre in rng.integers(0, side, 2))
        place = place_of(left + x, top + y)
        usable = np.flatnonzero(allowed("train")[:, number, place])
        thing = place_at_random(rng, OBJECTS[int(rng.choice(usable))], place)
        cut = cutout(thing)
        corner = (x - cut.width // 2, y - cut.height // 2)
        picture.paste(cut, corner, cut)
        mask.paste(owner, corner, Image.fromarray(np.asarray(cut.getchannel("A")) > 127))
        things.append(thing)
    return Window(picture, np.asarray(mask), background, tuple(things))
