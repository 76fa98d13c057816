"""Whether the image tokens that are kept show the objects of a scene.

Y, X pixels; G cells of the grid of image tokens along one side, N of them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool

from dynllava_jax.demo.render import render
from dynllava_jax.demo.scenes import Scene
from dynllava_jax.viz.overlay import spread


class OnThings(NamedTuple):
    """Where kept cells lie, in pixels.

    Attributes:
        precision: share of the kept cells' pixels that show an object.
        recall: share of the objects' pixels that lie in kept cells; of random tokens, their keep rate.
        area: share of the picture that shows objects, which is the precision of random tokens.
        by_thing: name of each object, its recall, and its share of the picture.
    """

    precision: float
    recall: float
    area: float
    by_thing: tuple[tuple[str, float, float], ...]


def kept_on_things(kept: Bool[np.ndarray, "G G"], scene: Scene) -> OnThings:
    """Holds kept cells against the mask of a scene."""
    mask = render(scene)[1]
    seen = spread(kept, *mask.shape)
    things = mask > 0
    by_thing = tuple(
        (placement.thing.name, _share(seen[mask == number]), float(np.mean(mask == number)))
        for number, placement in enumerate(scene.placements, 1)
        if (mask == number).any()
    )
    return OnThings(_share(things[seen]), _share(seen[things]), float(np.mean(things)), by_thing)


def as_grid(kept: Sequence[int], side: int) -> Bool[np.ndarray, "G G"]:
    """`Answer.kept_image_tokens` of one picture as cells."""
    grid = np.zeros(side * side, bool)
    grid[np.array(kept, int)] = True
    return grid.reshape(side, side)


def _share(of: Bool[np.ndarray, " N"]) -> float:
    return float(np.mean(of)) if of.size else 0.0
