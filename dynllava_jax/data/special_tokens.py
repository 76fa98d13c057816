"""What the files beside a tokenizer say of its special tokens."""

import dataclasses
import json
from typing import Any

from etils import epath

from dynllava_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class AddedToken:
    """A token that is found in a text before anything else; `lstrip`, `rstrip`: it swallows spaces beside it."""

    text: str
    id: int
    lstrip: bool = False
    rstrip: bool = False
    special: bool = False


@dataclasses.dataclass(frozen=True)
class SpecialTokens:
    """Read from `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`, as far as they exist.

    Attributes:
        roles: "bos", "eos", "unk", "pad" to the token's text, as far as the files say.
        added: tokens with ids of their own.
        words: texts of added tokens that stand for whole words only (`single_word`).
        further: texts of tokens that are as special as those with a role (`additional_special_tokens`).
        legacy: transformers' `legacy`: every part of a text, not only the first, gets a space in front.
        add_prefix_space: whether a text gets a space in front at all.
        add_bos: whether prompts begin with BOS.
    """

    roles: dict[str, str]
    added: tuple[AddedToken, ...]
    words: tuple[str, ...]
    further: tuple[str, ...]
    legacy: bool
    add_prefix_space: bool
    add_bos: bool | None

    @staticmethod
    def read(folder: epath.Path) -> "SpecialTokens":
        """Raises InputError for a file that cannot be read, or that asks for an end-of-sequence token in each text."""
        config, tokens, numbered = (
            _File.read(folder / f"{name}.json") for name in ("tokenizer_config", "special_tokens_map", "added_tokens")
        )
        if config.content.get("add_eos_token"):
            raise InputError(
                f"{config.path} sets add_eos_token, with which every prompt would end in the token that ends an "
                "answer; set it to false."
            )
        decoder = config.of("added_tokens_decoder", dict) or {}
        given = {config.number("added_tokens_decoder", key): entry for key, entry in decoder.items()}
        texts = {number: config.text("added_tokens_decoder", entry, bare=False) for number, entry in given.items()}
        added = {
            texts[number]: AddedToken(
                texts[number],
                number,
                lstrip=bool(entry.get("lstrip")),
                rstrip=bool(entry.get("rstrip")),
                special=bool(entry.get("special")),
            )
            for number, entry in given.items()
        }
        for text, number in numbered.content.items():
            added.setdefault(text, AddedToken(text, numbered.number(text, number)))
        roles = {}
        for role in ("bos", "eos", "unk", "pad"):
            for file in (tokens, config):  # the config's word is the last
                if entry := file.content.get(f"{role}_token"):
                    roles[role] = file.text(f"{role}_token", entry)
        further: tuple[str, ...] = ()
        for file in (tokens, config):
            if entries := file.of("additional_special_tokens", list):
                further = tuple(file.text("additional_special_tokens", entry) for entry in entries)
        return SpecialTokens(
            roles=roles,
            added=tuple(added.values()),
            words=tuple(texts[number] for number, entry in given.items() if entry.get("single_word")),
            further=further,
            legacy=config.content.get("legacy") is not False,
            add_prefix_space=config.content.get("add_prefix_space") is not False,
            add_bos=config.content.get("add_bos_token"),
        )


@dataclasses.dataclass(frozen=True)
class _File:
    """A JSON object; empty where there is no such file. What it holds raises InputError if it has another type."""

    path: epath.Path
    content: dict[str, Any]

    @staticmethod
    def read(path: epath.Path) -> "_File":
        if not path.is_file():
            return _File(path, {})
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path} cannot be read as JSON ({error}); copy it again.") from None
        if not isinstance(content, dict):
            raise InputError(f"{path} must hold a JSON object, not a {type(content).__name__}; copy it again.")
        return _File(path, content)

    def of(self, key: str, kind: type) -> Any:
        found = self.content.get(key)
        if found is not None and not isinstance(found, kind):
            raise InputError(f"{self.path}: {key} must be a {kind.__name__}, not {found!r}; copy it again.")
        return found

    def text(self, key: str, entry: Any, *, bare: bool = True) -> str:
        """A token's text, which stands among its properties, or may also be `bare`."""
        text = entry.get("content") if isinstance(entry, dict) else entry if bare else None
        if not isinstance(text, str):
            raise InputError(f"{self.path}: {key} has {entry!r}, which is no token; copy it again.")
        return text

    def number(self, key: str, written: Any) -> int:
        try:
            return int(written)
        except (TypeError, ValueError):
            raise InputError(
                f"{self.path}: {key} has {written!r}, which is no token's number; copy it again."
            ) from None
