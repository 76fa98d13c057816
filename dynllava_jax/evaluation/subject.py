"""One setting's model: found in a folder of checkpoints, loaded when something has to be computed, and its results."""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dynllava_jax.checkpoint.source import open_source
from dynllava_jax.errors import InputError
from dynllava_jax.evaluation.settings import Setting
from dynllava_jax.inference.assistant import Assistant
from dynllava_jax.inference.load import load


@dataclasses.dataclass(frozen=True)
class Place:
    """Where checkpoints are found by name, where results are kept, and how models are loaded."""

    models: Path
    rows: Path
    dtype: str | None = None
    device: str | None = None

    def find(self, setting: Setting) -> "Subject | str":
        """The setting's model, or why it cannot be run."""
        for name in setting.models:
            if (self.models / name).is_dir():
                return Subject(setting, self.models / name, self)
        return f"no {' or '.join(setting.models)} among the models"


@dataclasses.dataclass(frozen=True)
class Subject:
    """A setting whose weights are there."""

    setting: Setting
    path: Path
    place: Place

    @functools.cached_property
    def assistant(self) -> Assistant:
        """Loaded at the first look."""
        place, fields = self.place, dict(self.setting.sparsity)
        return load(self.path, dtype=place.dtype, device=place.device, sparsity=fields)

    @functools.cached_property
    def key(self) -> str:
        """Changes with the weights and with everything that changes what the model says."""
        source, setting = open_source(self.path), self.setting
        options = (source.content_hash, source.config, setting.sparsity, setting.eviction, self.place.dtype)
        return hashlib.sha256(repr(options).encode()).hexdigest()[:8]

    def file(self, what: str, ending: str) -> Path:
        """Where results of that kind are kept."""
        return self.place.rows / f"{self.path.name}-{self.key}-{what}.{ending}"

    def once(self, what: str, compute: Callable[[], Any]) -> Any:
        """What `compute` gives, as JSON; found again by the next run.

        Raises:
            InputError: the file is damaged or cannot be written; or what `compute` raises.
        """
        file = self.file(what, "json")
        if file.is_file():
            try:
                return json.loads(file.read_text())
            except (ValueError, RecursionError) as error:
                raise InputError(f"{file} is damaged: {error}; remove it.") from error
        content = json.dumps(compute())
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            partial = file.with_suffix(".tmp")
            partial.write_text(content)
            partial.replace(file)
        except OSError as error:
            raise InputError(f"{file} cannot be written: {error.strerror or error}.") from error
        return json.loads(content)
