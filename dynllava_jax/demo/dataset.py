"""The demo's data set as LLaVA JSON and pictures, with the truth of every placement beside it.

    FOLDER/SPLIT.json    LLaVA samples; "kinds" names each question's kind, "scene" holds background, things and boxes
           SPLIT/*.jpg   the pictures; *_mask.png: pixel value i + 1 where thing i is seen, 0 for the background

Sample i of a split is a pure function of (seed, split, i).
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dynllava_jax.data.prompt import IMAGE_MARK
from dynllava_jax.data.templates import Turn
from dynllava_jax.data.workers import in_order
from dynllava_jax.demo import descriptions
from dynllava_jax.demo.questions import KINDS, ask
from dynllava_jax.demo.render import box, render
from dynllava_jax.demo.scenes import SPLITS, Scene, Split, draw
from dynllava_jax.errors import InputError

DESCRIPTION = "description"
_TRIES = 1000


@dataclasses.dataclass(frozen=True)
class Mixture:
    """What is asked about the pictures.

    Attributes:
        turns: questions about one picture, each of another kind.
        descriptions: share of the samples that are "Describe the picture." instead.
    """

    turns: int = 8
    descriptions: float = 0.3

    def __post_init__(self) -> None:
        if not 1 <= self.turns <= len(KINDS):
            raise InputError(f"turns must lie in 1 … {len(KINDS)}, the number of question kinds, not {self.turns}.")
        if not 0.0 <= self.descriptions <= 1.0:
            raise InputError(f"descriptions is a share from 0 to 1, not {self.descriptions}.")


@dataclasses.dataclass(frozen=True)
class Sample:
    """A scene and a conversation about it; `kinds` says what each turn asks for."""

    id: str
    scene: Scene
    turns: tuple[Turn, ...]
    kinds: tuple[str, ...]


def sample(index: int, split: Split, mixture: Mixture = Mixture(), seed: int = 0) -> Sample:
    """Sample `index` of a split.

    With one turn a sample, the kinds take turns, and a scene that does not offer its kind is drawn again.
    """
    rng = np.random.default_rng((seed, SPLITS.index(split), index))
    id = f"{split}-{index:06d}"
    if rng.random() < mixture.descriptions:
        scene = draw(rng, split)
        return Sample(id, scene, (Turn(descriptions.QUESTION, descriptions.describe(scene)),), (DESCRIPTION,))
    names = tuple(KINDS)
    kinds = (names[index % len(names)],) if mixture.turns == 1 else tuple(str(k) for k in rng.permutation(names))
    for _ in range(_TRIES):
        scene = draw(rng, split)
        asked = [(kind, turn) for kind in kinds if (turn := ask(rng, scene, kind))][: mixture.turns]
        if asked:
            return Sample(id, scene, tuple(turn for _, turn in asked), tuple(kind for kind, _ in asked))
    raise AssertionError(f"no scene of {split} offers {kinds}")


def write(
    folder: Path,
    split: Split,
    count: int,
    mixture: Mixture = Mixture(),
    seed: int = 0,
    progress: Callable[[int], None] = lambda done: None,
    *,
    workers: int = 0,
) -> Path:
    """Writes the samples 0 … count - 1 of a split and returns the JSON file.

    Args:
        folder: made when it is not there.
        split, count, mixture, seed: which samples, see `sample`.
        progress: is told how many there are more.
        workers: processes that draw, which changes no byte; 0 draws in this one.

    Raises:
        InputError: the file exists already, or the folder cannot be written.
        CheckError: a worker process was killed.
    """
    file = folder / f"{split}.json"
    if file.exists():
        raise InputError(f"{file} exists already and is not overwritten; give another folder or remove it.")
    try:
        (folder / split).mkdir(parents=True, exist_ok=True)
        records = []
        for record in in_order(_Draw(folder, split, mixture, seed), range(count), workers):
            records.append(record)
            progress(1)
        # Whole or not there at all: what is there is not made again.
        partial = file.with_name(f"{file.name}.tmp")
        partial.write_text("[\n" + ",\n".join(records) + "\n]\n")
        partial.replace(file)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}.") from error
    return file


@dataclasses.dataclass(frozen=True)
class _Draw:
    """Writes the pictures of one sample, in whatever process, and gives its JSON."""

    folder: Path
    split: Split
    mixture: Mixture
    seed: int

    def __call__(self, index: int) -> str:
        return json.dumps(_write_sample(self.folder, self.split, sample(index, self.split, self.mixture, self.seed)))


def _write_sample(folder: Path, split: str, one: Sample) -> dict[str, Any]:
    picture, mask = render(one.scene)
    name = f"{split}/{one.id}.jpg"
    picture.save(folder / name, quality=92)
    Image.fromarray(mask).save(folder / split / f"{one.id}_mask.png")
    marks = (f"{IMAGE_MARK}\n", *("" for _ in one.turns[1:]))
    conversations = []
    for mark, turn in zip(marks, one.turns, strict=True):
        conversations.append({"from": "human", "value": mark + turn.question})
        conversations.append({"from": "gpt", "value": turn.answer})
    return {
        "id": one.id,
        "image": name,
        "conversations": conversations,
        "kinds": one.kinds,
        "scene": truth(one.scene),
    }


def truth(scene: Scene) -> dict[str, Any]:
    """What stands where, for JSON."""
    return {
        "background": scene.background.name,
        "things": [
            {
                "name": placement.thing.name,
                "place": placement.place,
                "size": placement.size,
                "colour": placement.colour,
                "mirrored": placement.mirrored,
                "box": box(placement),
            }
            for placement in scene.placements
        ],
    }
