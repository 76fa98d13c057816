"""What our model gave for one case, under the recording's names."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from dynllava_jax.data.spans import Sample

Spans = list[dict[str, list[int]]]

MASKED_INTEGER = -999


class Computed:
    """Collects arrays and facts, which rows of them do not count, and what cannot be compared.

    Attributes:
        values: arrays, shaped and ordered as the official code has them.
        masked: boolean arrays over leading axes of some values; True where the row is padding.
        info: facts, by the name of their row ("info.…").
        not_compared: reason by array.
    """

    def __init__(self) -> None:
        self.values: dict[str, np.ndarray] = {}
        self.masked: dict[str, np.ndarray] = {}
        self.info: dict[str, Any] = {}
        self.not_compared: dict[str, str] = {}

    def put(self, name: str, value: Any, masked: np.ndarray | None = None) -> None:
        """Takes an array (device or host) and the rows of it that do not count."""
        self.values[name] = np.asarray(value)
        if masked is not None and masked.any():
            self.masked[name] = masked

    def put_all(self, prefix: str, values: dict[str, Any]) -> None:
        for name, value in values.items():
            self.put(f"{prefix}{name}", value)

    def skip(self, name: str, reason: str) -> None:
        self.not_compared[name] = reason

    @property
    def rows_masked(self) -> int:
        return sum(int(masked.sum()) for masked in self.masked.values())

    def dump(self, path: Path) -> None:
        """Writes an .npz under the recording's names: masked rows NaN or -999, facts as JSON strings."""
        arrays = {name: self._blank(name) for name in self.values}
        arrays |= {name: np.array(json.dumps(value)) for name, value in self.info.items()}
        np.savez_compressed(path, **arrays)  # pyright: ignore[reportArgumentType]

    def _blank(self, name: str) -> np.ndarray:
        value = self.values[name]
        if name not in self.masked:
            return value
        value = value.astype(np.int32) if value.dtype == bool else value.copy()
        value[self.masked[name]] = np.nan if np.issubdtype(value.dtype, np.floating) else MASKED_INTEGER
        return value


def spans_of(samples: list[Sample]) -> Spans:
    """The official `input_embeds_indices`: an entry for every sample that has an image."""
    return [sample.spans() for sample in samples if sample.image_count]
