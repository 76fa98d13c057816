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
        config = _read_json(folder / "tokenizer_config.json")
        if config.get("add_eos_token"):
            raise InputError(
                f"{folder / 'tokenizer_config.json'} sets add_eos_token, with which every prompt would end in "
                "the token that ends an answer; set it to false."
            )
        tokens = _read_json(folder / "special_tokens_map.json")
        given = config.get("added_tokens_decoder", {})
        added = {
            entry["content"]: AddedToken(
                entry["content"],
                int(number),
                lstrip=bool(entry.get("lstrip")),
                rstrip=bool(entry.get("rstrip")),
                special=bool(entry.get("special")),
            )
            for number, entry in given.items()
        }
        for text, number in _read_json(folder / "added_tokens.json").items():
            added.setdefault(text, AddedToken(text, int(number)))
        roles = {}
        for role in ("bos", "eos", "unk", "pad"):
            entry = config.get(f"{role}_token") or tokens.get(f"{role}_token")
            if entry:
                roles[role] = _text(entry)
        further = config.get("additional_special_tokens") or tokens.get("additional_special_tokens") or ()
        return SpecialTokens(
            roles=roles,
            added=tuple(added.values()),
            words=tuple(entry["content"] for entry in given.values() if entry.get("single_word")),
            further=tuple(map(_text, further)),
            legacy=config.get("legacy") is not False,
            add_prefix_space=config.get("add_prefix_space") is not False,
            add_bos=config.get("add_bos_token"),
        )


def _text(entry: str | dict[str, Any]) -> str:
    return entry["content"] if isinstance(entry, dict) else entry


def _read_json(file: epath.Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{file} cannot be read as JSON ({error}); copy it again.") from None
    if not isinstance(content, dict):
        raise InputError(f"{file} must hold a JSON object, not a {type(content).__name__}; copy it again.")
    return content
