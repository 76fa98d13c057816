"""SRC as a folder: one here, one on a bucket, or a name on the Hugging Face hub, which is downloaded."""

import os
import re
from pathlib import Path

from dynllava_jax.checkpoint.paths import AnyPath, as_path, reachable
from dynllava_jax.errors import InputError

_SMALL = ("*.json", "*.jinja", "*.model")
_PARTS = ("non_lora_trainables.bin", "mm_projector.bin")
"""LLaVA's training pickles these, also where peft writes the adapters beside them as safetensors."""

_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def locate(where: str | os.PathLike) -> AnyPath:
    """The folder of a checkpoint; safetensors are preferred to pickles.

    Raises:
        InputError: a hub name that cannot be downloaded or a bucket that cannot be asked, in one line with the reason.
    """
    path = reachable(as_path(where))
    if path.exists() or not _NAME.fullmatch(os.fspath(where)):
        return path
    name = os.fspath(where)
    try:
        import huggingface_hub
    except ImportError:
        raise InputError(
            f"There is no folder {name}; to download it from the Hugging Face hub: pip install huggingface_hub."
        ) from None
    try:
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*_SMALL, *_PARTS, "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=[*_SMALL, "*.bin"]))
    except Exception as error:  # the library raises its own, those of its HTTP client, and OSError
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(
            f"There is no folder {name}, and the Hugging Face hub does not give a repository of that name: {reason}"
        ) from None
    return folder
