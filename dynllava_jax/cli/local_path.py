"""`type=` of options that name a file or folder of this machine."""

import argparse
from pathlib import Path


def local_path(text: str) -> Path:
    """The path with its `~`; argparse says which option it was where there is none of this machine."""
    from dynllava_jax.checkpoint.paths import as_path
    from dynllava_jax.errors import InputError

    try:
        path = as_path(text, "the path")
    except InputError as error:
        raise argparse.ArgumentTypeError(str(error).removesuffix(".")) from None
    if not isinstance(path, Path):
        raise argparse.ArgumentTypeError(f"{text} lies on a bucket; give a path of this machine")
    return path
