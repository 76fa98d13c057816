"""Which things stand where: a scene is a pure function of a seed, a split and a number.

Every (object, background) pair has two of the six places held out: there it stands in the test split and nowhere else
in that split, and never in training. So no (object, background, place) of a test scene was ever seen in training.
"""

import dataclasses
import functools
from typing import Literal

import numpy as np
from jaxtyping import Bool

from dynllava_jax.demo.catalogue import BACKGROUNDS, COLOURS, OBJECTS, PLACES, Background, Thing

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")

_HELD_OUT = 2
_SPLIT_SEED = 20250
_TWINS = 0.5
"""Share of the scenes with two things or more in which one object stands twice, so that counting means something."""


@dataclasses.dataclass(frozen=True)
class Placement:
    """One thing in a scene.

    Attributes:
        thing: what it is; in COLOURS[colour] if it is a dyed one (else colour is None).
        place: index into PLACES.
        size: "large" or "small".
        mirrored: left and right are exchanged.
        shift: (x, y) in thirds of what its cell leaves free, each in [-1, 1].
    """

    thing: Thing
    place: int
    size: Literal["large", "small"]
    colour: str | None
    mirrored: bool
    shift: tuple[float, float]

    @property
    def row(self) -> int:
        return self.place // 3

    @property
    def column(self) -> int:
        return self.place % 3


@dataclasses.dataclass(frozen=True)
class Scene:
    """A background and one to five things, in the order of their places.

    `crop` (x, y in [0, 1], flipped) says which part of the photograph is seen.
    """

    background: Background
    placements: tuple[Placement, ...]
    crop: tuple[float, float, bool]

    def count(self, thing: Thing) -> int:
        return sum(placement.thing == thing for placement in self.placements)

    @property
    def unique(self) -> tuple[Placement, ...]:
        """What stands there once, so that "the dog" is one."""
        return tuple(placement for placement in self.placements if self.count(placement.thing) == 1)


@functools.cache
def allowed(split: Split) -> Bool[np.ndarray, "objects backgrounds places"]:
    """Which combinations a split may use; the two splits' are disjoint."""
    rng = np.random.default_rng(_SPLIT_SEED)
    order = rng.permuted(np.broadcast_to(np.arange(len(PLACES)), (len(OBJECTS), len(BACKGROUNDS), len(PLACES))), axis=2)
    held = order < _HELD_OUT
    return held if split == "test" else ~held


def draw(rng: np.random.Generator, split: Split) -> Scene:
    """A random scene of a split."""
    background = int(rng.integers(len(BACKGROUNDS)))
    usable = allowed(split)[:, background]
    count = int(rng.integers(1, 6))
    places = [int(place) for place in rng.permutation(len(PLACES))[:count]]
    things: dict[int, int] = {}
    if count > 1 and rng.random() < _TWINS:
        both = np.flatnonzero(usable[:, places[0]] & usable[:, places[1]])
        if both.size:
            things = dict.fromkeys(places[:2], int(rng.choice(both)))
    for place in places:
        if place not in things:
            free = np.setdiff1d(np.flatnonzero(usable[:, place]), list(things.values()))
            things[place] = int(rng.choice(free))
    placements = tuple(place_at_random(rng, OBJECTS[things[place]], place) for place in sorted(places))
    return Scene(BACKGROUNDS[background], placements, (rng.random(), rng.random(), bool(rng.random() < 0.5)))


def place_at_random(rng: np.random.Generator, thing: Thing, place: int) -> Placement:
    """The thing at that place; size, colour, side and shift are drawn."""
    return Placement(
        thing,
        place,
        "large" if rng.random() < 0.5 else "small",
        str(rng.choice(COLOURS)) if thing.dyed else None,
        bool(rng.random() < 0.5),
        (float(rng.uniform(-1, 1)), float(rng.uniform(-1, 1))),
    )
