"""The long answer: everything that stands in a scene, in 60 to 120 words."""

from dynllava_jax.demo.catalogue import NUMBERS, PLACES
from dynllava_jax.demo.scenes import Placement, Scene

QUESTION = "Describe the picture."


def describe(scene: Scene) -> str:
    """A description that the placement alone decides; empty places are named too."""
    at = {placement.place: placement for placement in scene.placements}
    rows = [sum(placement.row == row for placement in scene.placements) for row in range(2)]
    return " ".join(
        (
            f"The picture shows {_things(len(at))} in front of {scene.background.phrase}.",
            *(_sentence(at.get(place), name) for place, name in enumerate(PLACES)),
            f"So there {_are(rows[0])} in the top row and {_number(rows[1])} in the bottom row, "
            f"and behind all of them one can see {scene.background.phrase}.",
        )
    )


def noun_phrase(placement: Placement) -> str:
    """Such as "a large red car"."""
    return " ".join(filter(None, ("a", placement.size, placement.colour, placement.thing.name)))


def _sentence(placement: Placement | None, name: str) -> str:
    if placement is None:
        return f"There is nothing in the {name}."
    thing = placement.thing
    article = "an" if thing.kind[0] in "aeiou" else "a"
    kind = "which is food" if thing.kind == "food" else f"which is {article} {thing.kind}"
    return f"In the {name} there is {noun_phrase(placement)}, {kind}."


def _things(count: int) -> str:
    return f"{NUMBERS[count]} thing{'s' * (count != 1)}"


def _are(count: int) -> str:
    return f"is {_number(count)}" if count == 1 else f"are {_number(count)}"


def _number(count: int) -> str:
    return NUMBERS[count] if count else "none"
