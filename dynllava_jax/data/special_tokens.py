"""What the files beside a tokenizer say of its special tokens."""

import dataclasses
from typing import Any

from etils import epath

from dynllava_jax.config.check import MAX_SIZE
from dynllava_jax.config.json_file import read_object, wrong
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
        if config.flag("add_eos_token"):
            raise InputError(
                f"{config.path} sets add_eos_token, with which every prompt would end in the token that ends an "
                "answer; set it to false."
            )
        given = {
            config.number("added_tokens_decoder", key): config.entry(f"added_tokens_decoder.{key}", entry)
            for key, entry in (config.of("added_tokens_decoder", dict) or {}).items()
        }
        texts = {number: entry.text("content", entry.content.get("content")) for number, entry in given.items()}
        added = {
            texts[number]: AddedToken(
                texts[number],
                number,
                lstrip=bool(entry.flag("lstrip")),
                rstrip=bool(entry.flag("rstrip")),
                special=bool(entry.flag("special")),
            )
            for number, entry in given.items()
        }
        for text, found in numbered.content.items():
            number = numbered.number(text, found)
            if texts.setdefault(number, numbered.text("its list", text)) != text:
                raise InputError(
                    f"{numbered.path}: {text} has the id {number}, which is that of {texts[number]}; copy it again."
                )
            added.setdefault(text, AddedToken(text, number))
        roles = {}
        for role in ("bos", "eos", "unk", "pad"):
            for file in (tokens, config):  # the config's word is the last
                if (entry := file.content.get(f"{role}_token")) not in (None, ""):
                    roles[role] = file.text(f"{role}_token", entry)
        further: tuple[str, ...] = ()
        for file in (tokens, config):
            if entries := file.of("additional_special_tokens", list):
                further = tuple(file.text("additional_special_tokens", entry) for entry in entries)
        return SpecialTokens(
            roles=roles,
            added=tuple(added.values()),
            words=tuple(texts[number] for number, entry in given.items() if entry.flag("single_word")),
            further=further,
            legacy=config.flag("legacy") is not False,
            add_prefix_space=config.flag("add_prefix_space") is not False,
            add_bos=config.flag("add_bos_token"),
        )


@dataclasses.dataclass(frozen=True)
class _File:
    """A JSON object; empty where there is no such file. What it holds raises InputError if it has another type."""

    path: epath.Path | str
    content: dict[str, Any]

    @staticmethod
    def read(path: epath.Path) -> "_File":
        return _File(path, read_object(path) if path.is_file() else {})

    def of(self, key: str, kind: type) -> Any:
        found = self.content.get(key)
        if found is not None and not isinstance(found, kind):
            raise wrong(self.path, key, f"a {kind.__name__}", found)
        return found

    def flag(self, key: str) -> bool | None:
        return self.of(key, bool)

    def entry(self, key: str, entry: Any) -> "_File":
        """The properties of a token."""
        if not isinstance(entry, dict):
            raise wrong(self.path, key, "an object", entry)
        return _File(f"{self.path}: {key}", entry)

    def text(self, key: str, entry: Any) -> str:
        """A token's text, bare or among its properties; an empty one would be found everywhere."""
        text = entry.get("content") if isinstance(entry, dict) else entry
        if not isinstance(text, str) or not text:
            raise wrong(self.path, key, "a token's text", entry)
        return text

    def number(self, key: str, written: Any) -> int:
        """A token's id; a key of an object is text."""
        whole = int(written) if isinstance(written, str) and written.isdecimal() and len(written) < 10 else written
        if not isinstance(whole, int) or isinstance(whole, bool) or not 0 <= whole < MAX_SIZE:
            raise wrong(self.path, key, "a token's id", written)
        return whole
