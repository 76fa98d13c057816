"""Held-out questions about the demo's scenes, one a picture, and descriptions of others.

`blind` shows the picture of another question of the same kind: what is right then was guessed from the text.
"""

import dataclasses

from PIL import Image

from dynllava_jax.demo.dataset import DESCRIPTION, Mixture, Sample, sample
from dynllava_jax.demo.questions import KINDS
from dynllava_jax.demo.render import render

_SINGLE = Mixture(turns=1, descriptions=0.0)
_DESCRIBED = Mixture(turns=1, descriptions=1.0)


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with its answer, and the scene whose picture is shown."""

    id: str
    kind: str
    text: str
    answer: str
    shown: Sample

    @property
    def picture(self) -> Image.Image:
        return render(self.shown.scene)[0]


def questions(count: int, *, blind: bool = False, seed: int = 1) -> list[Question]:
    """The first `count` questions of the test split; the kinds take turns."""
    step = len(KINDS) if blind else 0
    found = []
    for index in range(count):
        asked = sample(index, "test", _SINGLE, seed)
        shown = sample(index + step, "test", _SINGLE, seed)
        (turn,), (kind,) = asked.turns, asked.kinds
        assert turn.answer is not None
        found.append(Question(asked.id, kind, turn.question, turn.answer, shown))
    return found


def descriptions(count: int, *, seed: int = 2) -> list[Question]:
    """The wish for a description of `count` scenes of the test split, with the true one as answer."""
    found = []
    for index in range(count):
        shown = sample(index, "test", _DESCRIBED, seed)
        (turn,) = shown.turns
        assert turn.answer is not None
        found.append(Question(shown.id, DESCRIPTION, turn.question, turn.answer, shown))
    return found
