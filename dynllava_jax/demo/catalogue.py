"""What the demo's scenes are made of: objects, backgrounds, colours, places, and their words."""

import dataclasses
import itertools
from pathlib import Path

MATERIAL = Path(__file__).parent / "material"
"""The reduced pictures; authors and licences stand in LICENCES.md there."""


@dataclasses.dataclass(frozen=True)
class Thing:
    """An object that scenes may hold.

    Attributes:
        name, plural: its words.
        code: Unicode code point, the name of its picture's source.
        kind: animal, food, vehicle or object.
        dyed: drawn in one of COLOURS, so that its colour can be asked for.
    """

    name: str
    code: str
    kind: str
    plural: str
    dyed: bool = False

    @property
    def article(self) -> str:
        return "an" if self.name[0] in "aeiou" else "a"


@dataclasses.dataclass(frozen=True)
class Background:
    """A photograph that scenes stand on, and how its content is called."""

    name: str
    phrase: str


def _things(kind: str, text: str, dyed: bool = False) -> list[Thing]:
    found = []
    for entry in text.split():
        name, code, *plural = entry.split(":")
        found.append(Thing(name, code, kind, plural[0] if plural else f"{name}s", dyed))
    return found


OBJECTS: tuple[Thing, ...] = (
    *_things(
        "animal",
        "dog:1f436 cat:1f431 panda:1f43c lion:1f981 pig:1f437 frog:1f438 penguin:1f427 owl:1f989 elephant:1f418 "
        "turtle:1f422 fish:1f420:fish octopus:1f419:octopuses butterfly:1f98b:butterflies bee:1f41d",
    ),
    *_things(
        "food",
        "apple:1f34e banana:1f34c strawberry:1f353:strawberries pineapple:1f34d carrot:1f955 mushroom:1f344 "
        "burger:1f354 pizza:1f355 doughnut:1f369 cake:1f382",
    ),
    *_things("vehicle", "bus:1f68c:buses bicycle:1f6b2 rocket:1f680 boat:26f5 train:1f682"),
    *_things("object", "guitar:1f3b8 drum:1f941 clock:23f0 key:1f511 camera:1f4f7 crown:1f451"),
    *_things("plant", "cactus:1f335:cactuses"),
    *_things("vehicle", "car:1f697", dyed=True),
    *_things(
        "object",
        "balloon:1f388 book:1f4d5 shirt:1f455 heart:2764-fe0f umbrella:2602-fe0f cap:1f9e2 dress:1f457:dresses",
        dyed=True,
    ),
)

BACKGROUNDS: tuple[Background, ...] = (
    Background("meadow", "a meadow"),
    Background("stream", "a forest stream"),
    Background("mountains", "rocky mountains"),
    Background("brushes", "paint brushes"),
    Background("dandelions", "dandelions"),
    Background("sunset", "a sunset"),
    Background("pattern", "a colourful pattern"),
    Background("room", "a living room"),
    Background("gravel", "gravel"),
    Background("bricks", "a brick wall"),
    Background("stars", "the night sky"),
    Background("temple", "a temple"),
)

HUES = {"red": 0.0, "yellow": 0.14, "green": 0.36, "blue": 0.6, "purple": 0.78}
COLOURS = tuple(HUES)
ROWS, COLUMNS = ("top", "bottom"), ("left", "middle", "right")
PLACES = tuple(f"{row} {column}" for row, column in itertools.product(ROWS, COLUMNS))
"""Place i is in row i // 3 and column i % 3."""

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six")
