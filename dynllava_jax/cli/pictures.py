"""Pictures as options name them, and what is said of those that the demo model does not know."""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any


def image_source(name: str) -> str | Path:
    """A path or address, `sample:NAME` resolved."""
    from dynllava_jax.demo import pictures

    return pictures.sample(name.removeprefix("sample:")).path if name.startswith("sample:") else name


def read_pictures(images: Sequence[str | Path]) -> list[Any]:
    """The pictures themselves: a file that is not there is told before a model is loaded, which may take minutes."""
    from dynllava_jax.data.image import load_image

    return [load_image(image) for image in images]


def warn_of_foreign(assistant: Any, images: Iterable[str | bytes | Path]) -> bool:
    """The demo model answers about any picture, in the only words that it has. Called once the pictures were read.

    Returns:
        Whether there was something to warn of.
    """
    from dynllava_jax.demo import pictures

    scenes = {picture.path.absolute() for picture in pictures.SAMPLES if picture.scene}
    if not assistant.scenes_only or all(
        not isinstance(image, bytes) and Path(image).absolute() in scenes for image in images
    ):
        return False
    print(
        "dynllava: the demo model knows only its own scenes (dynllava samples); for other pictures convert a "
        "LLaVA checkpoint: dynllava convert from-torch SRC DST",
        file=sys.stderr,
    )
    return True
