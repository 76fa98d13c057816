"""The pictures that come with the package: scenes of the demo's test split, and photographs that it does not know.

Authors and licences: THIRD_PARTY.md and material/LICENCES.md.
"""

import dataclasses
from pathlib import Path

from dynllava_jax.errors import InputError

_FOLDER = Path(__file__).parent / "samples"


@dataclasses.dataclass(frozen=True)
class SamplePicture:
    """A picture that comes with the package, and a question about it.

    `answer` is the true one where the picture is one of the demo's scenes, else None.
    """

    name: str
    path: Path
    question: str
    answer: str | None = None

    @property
    def scene(self) -> bool:
        return self.answer is not None


SAMPLES = tuple(
    SamplePicture(name, _FOLDER / f"{name}.jpg", question, answer)
    for name, question, answer in (
        ("sunset", "What colour is the car?", "purple"),
        ("frogs", "How many frogs are there?", "two"),
        ("night", "What is in the background?", "the night sky"),
        ("temple", "Where is the shirt?", "top right"),
        ("cat", "What is the animal doing?", None),
        ("coffee", "What stands on the table?", None),
        ("rocket", "Describe the picture.", None),
        ("astronaut", "What is the person wearing?", None),
    )
)


def sample(name: str) -> SamplePicture:
    """Raises InputError for an unknown name."""
    for picture in SAMPLES:
        if picture.name == name:
            return picture
    raise InputError(f"There is no sample {name!r}; there are {', '.join(picture.name for picture in SAMPLES)}.")
