"""A hash per leaf: Orbax restores flipped bits without a word, so every read is checked here."""

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from dynllava_jax.errors import InputError

ALGORITHM = "sha256"
"""The fastest strong one where the processor has instructions for it, as servers do."""


def hash_bytes(data: bytes | memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def describe(leaves: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Hash, shape and dtype of each leaf. Hashing runs on several threads: hashlib leaves the interpreter lock."""
    with ThreadPoolExecutor() as pool:
        hashes = pool.map(_hash_array, leaves.values())
        return {
            name: {"hash": digest, "shape": list(leaf.shape), "dtype": leaf.dtype.name}
            for (name, leaf), digest in zip(leaves.items(), hashes, strict=True)
        }


def check(leaves: Mapping[str, np.ndarray], recorded: Mapping[str, Mapping[str, Any]], where: str) -> None:
    """Raises InputError that names every leaf whose content is not what was written."""
    found = describe(leaves)
    wrong = [name for name in recorded if found.get(name) != recorded[name]]
    wrong += [name for name in found if name not in recorded]
    if wrong:
        raise InputError(
            f"{where} is damaged: {', '.join(wrong[:5])}{' …' if len(wrong) > 5 else ''} "
            "differ from the hash written with them; convert or copy the checkpoint again."
        )


def content_hash(items: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """One hash for all leaves, the same however they are spread over items."""
    lines = sorted(
        f"{name} {leaf['dtype']} {leaf['shape']} {leaf['hash']}"
        for item in items.values()
        for name, leaf in item.items()
    )
    return hash_bytes("\n".join(lines).encode())


def _hash_array(leaf: np.ndarray) -> str:
    return hash_bytes(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8).data)
