"""The pictures that come with the package (their authors and licences: THIRD_PARTY.md)."""

import dataclasses
from pathlib import Path

from dynllava_jax.errors import InputError

_FOLDER = Path(__file__).parent / "samples"


@dataclasses.dataclass(frozen=True)
class SamplePicture:
    """A picture that comes with the package, and a question about it."""

    name: str
    path: Path
    question: str


SAMPLES = tuple(
    SamplePicture(name, _FOLDER / f"{name}.jpg", question)
    for name, question in (
        ("cat", "What is the animal doing?"),
        ("coffee", "What stands on the table?"),
        ("rocket", "Describe the picture."),
        ("astronaut", "What is the person wearing?"),
    )
)


def sample(name: str) -> SamplePicture:
    """Raises InputError for an unknown name."""
    for picture in SAMPLES:
        if picture.name == name:
            return picture
    raise InputError(f"There is no sample {name!r}; there are {', '.join(picture.name for picture in SAMPLES)}.")
