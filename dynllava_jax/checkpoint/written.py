"""What `config.json` and `hashes.json` of a model checkpoint must hold, looked at before anything is done with it."""

import dataclasses
from typing import Any

import numpy as np

from dynllava_jax.checkpoint.paths import AnyPath
from dynllava_jax.config.json_file import is_whole, read_object, wrong

_AGAIN = "copy the checkpoint again"


@dataclasses.dataclass(frozen=True)
class Written:
    """A JSON file of a checkpoint; what it holds raises InputError if it is not what was written there."""

    file: AnyPath
    content: dict[str, Any]

    @staticmethod
    def read(file: AnyPath) -> "Written":
        return Written(file, read_object(file, _AGAIN))

    def nested(self, key: str) -> dict[str, Any]:
        if not isinstance(found := self.content.get(key), dict):
            raise wrong(self.file, key, "an object", found, _AGAIN)
        return found

    def facts(self) -> dict[str, Any]:
        """Those that are acted upon are looked at."""
        facts = self.nested("facts")
        fresh = facts.get("fresh", [])
        if not isinstance(fresh, list) or not all(isinstance(name, str) for name in fresh):
            raise wrong(self.file, "facts.fresh", "a list of names", fresh, _AGAIN)
        for key in ("layout", "tower_prefix"):
            if not isinstance(facts.get(key, ""), str):
                raise wrong(self.file, f"facts.{key}", "a name", facts[key], _AGAIN)
        return facts

    def items(self) -> dict[str, dict[str, dict[str, Any]]]:
        items = self.nested("items")
        if not items:
            raise wrong(self.file, "items", "the parts of a model", items, _AGAIN)
        for item, leaves in items.items():
            if not isinstance(leaves, dict):
                raise wrong(self.file, f"items.{item}", "an object", leaves, _AGAIN)
            for name, leaf in leaves.items():
                self._check_leaf(name, leaf)
        return items

    def dtype(self, key: str, name: Any) -> str:
        try:
            known = isinstance(name, str) and np.dtype(name).name == name
        except TypeError:
            known = False
        if not known:
            raise wrong(self.file, key, "a dtype", name, _AGAIN)
        return name

    def _check_leaf(self, name: str, leaf: Any) -> None:
        shape = leaf.get("shape") if isinstance(leaf, dict) else None
        if not isinstance(shape, list) or not all(map(is_whole, shape)) or not isinstance(leaf.get("hash"), str):
            raise wrong(self.file, name, "an object with hash, shape and dtype", leaf, _AGAIN)
        self.dtype(name, leaf.get("dtype"))
