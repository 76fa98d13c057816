"""Nine kinds of questions about a scene, drawn so that guessing without the picture gains little.

The wanted answer is chosen before what is asked about, where there are few answers.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from dynllava_jax.data.templates import Turn
from dynllava_jax.demo.catalogue import NUMBERS, OBJECTS, PLACES, Thing
from dynllava_jax.demo.scenes import Scene

T = TypeVar("T")
Asker = Callable[[np.random.Generator, Scene], Turn | None]


def ask(rng: np.random.Generator, scene: Scene, kind: str) -> Turn | None:
    """A question of a kind with its answer; None where the scene offers none (no coloured thing, say)."""
    return KINDS[kind](rng, scene)


def _count(rng: np.random.Generator, scene: Scene) -> Turn | None:
    # Two of a kind stand in fewer scenes: with these shares the three answers come out equally often.
    wanted = int(rng.choice(3, p=(0.2, 0.2, 0.6)))
    things = [thing for thing in OBJECTS if scene.count(thing) == wanted]
    if not things:
        return None
    return Turn(f"How many {_pick(rng, things).plural} are there?", NUMBERS[wanted])


def _total(rng: np.random.Generator, scene: Scene) -> Turn:
    return Turn("How many things are in the picture?", NUMBERS[len(scene.placements)])


def _what(rng: np.random.Generator, scene: Scene) -> Turn:
    placement = _pick(rng, scene.placements)
    return Turn(f"What is in the {PLACES[placement.place]}?", f"{placement.thing.article} {placement.thing.name}")


def _where(rng: np.random.Generator, scene: Scene) -> Turn | None:
    if not scene.unique:
        return None
    placement = _pick(rng, scene.unique)
    return Turn(f"Where is the {placement.thing.name}?", PLACES[placement.place])


def _colour(rng: np.random.Generator, scene: Scene) -> Turn | None:
    dyed = [placement for placement in scene.unique if placement.colour]
    if not dyed:
        return None
    placement = _pick(rng, dyed)
    return Turn(f"What colour is the {placement.thing.name}?", str(placement.colour))


def _size(rng: np.random.Generator, scene: Scene) -> Turn | None:
    if not scene.unique:
        return None
    placement = _pick(rng, scene.unique)
    return Turn(f"Is the {placement.thing.name} large or small?", placement.size)


def _relation(rng: np.random.Generator, scene: Scene) -> Turn | None:
    beside = [(a, b) for a in scene.unique for b in scene.unique if a.column < b.column]
    stacked = [(a, b) for a in scene.unique for b in scene.unique if a.row < b.row]
    choices = [
        (pair, words) for pair, words in ((beside, ("left of", "right of")), (stacked, ("above", "below"))) if pair
    ]
    if not choices:
        return None
    pairs, words = _pick(rng, choices)
    first, second = _pick(rng, pairs)
    true, turned = bool(rng.integers(2)), bool(rng.integers(2))
    word = words[turned] if true else words[not turned]
    if turned:
        first, second = second, first
    return Turn(f"Is the {first.thing.name} {word} the {second.thing.name}?", "yes" if true else "no")


def _exist(rng: np.random.Generator, scene: Scene) -> Turn:
    if rng.integers(2):
        return Turn(_is_there(_pick(rng, scene.placements).thing), "yes")
    return Turn(_is_there(_pick(rng, [thing for thing in OBJECTS if not scene.count(thing)])), "no")


def _background(rng: np.random.Generator, scene: Scene) -> Turn:
    return Turn("What is in the background?", scene.background.phrase)


def _is_there(thing: Thing) -> str:
    return f"Is there {thing.article} {thing.name} in the picture?"


def _pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    return choices[int(rng.integers(len(choices)))]


KINDS: dict[str, Asker] = {
    "background": _background,
    "colour": _colour,
    "count": _count,
    "exist": _exist,
    "relation": _relation,
    "size": _size,
    "total": _total,
    "what": _what,
    "where": _where,
}
