"""A Hugging Face `tokenizer.json`, through the `tokenizers` library."""

import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

from etils import epath

from dynllava_jax.data.special_tokens import SpecialTokens
from dynllava_jax.errors import InputError, shown


class HfTokenizer:
    """The `tokenizer.json` backend of `Tokenizer`.

    Attributes:
        roles: "bos", "eos", "unk", "pad" to the token's text, as far as they are known.
        strips_first_space: the space that a text's first piece begins with was put there by the tokenizer.
        legacy: what follows a special token is tokenised as the beginning of a text is.
    """

    def __init__(self, file: epath.Path, special: SpecialTokens) -> None:
        try:
            import tokenizers
        except ImportError:
            raise InputError(f"{file} needs the package tokenizers; pip install tokenizers.") from None
        self.roles = special.roles
        with _named(file):
            self._model = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
            mark = self.roles.get("eos", "")
            self.legacy = self.encode(f"{mark}a")[len(self.encode(mark)) :] == self.encode("a")
            self._adds_bos = "bos" in self.roles and self._model.encode("a").ids[:1] == [self.id_of(self.roles["bos"])]
        kinds = _kinds(json.loads(self._model.to_str())["decoder"])
        self._byte_level = "ByteLevel" in kinds
        if not self._byte_level and not kinds & {"ByteFallback", "Metaspace"}:
            raise InputError(
                f"{file} has the decoder {sorted(kinds)}; byte-level and sentencepiece-like ones are known."
            )
        self.strips_first_space = bool(kinds & {"Strip", "Metaspace"})
        self._table = _byte_alphabet() if self._byte_level else None
        if self._table is not None and (strange := sorted(set("".join(self._plain())) - self._table.keys())):
            raise InputError(f"{file} is byte-level, but {strange[0]!r} in its vocabulary is no byte; copy it again.")

    def encode(self, text: str) -> list[int]:
        """Ids without BOS; special tokens inside the text are recognised."""
        return self._model.encode(text, add_special_tokens=False).ids

    def id_of(self, token: str) -> int | None:
        return self._model.token_to_id(token)

    def pieces(self) -> dict[int, bytes]:
        """The UTF-8 bytes that each id stands for; half a character is possible."""
        pieces = {number: _piece(text, self._table) for text, number in self._plain().items()}
        added = self._model.get_added_tokens_decoder()
        return pieces | {number: token.content.encode() for number, token in added.items()}

    def special_ids(self) -> frozenset[int]:
        return frozenset(n for n, token in self._model.get_added_tokens_decoder().items() if token.special)

    def serialized(self) -> bytes:
        """All that decides how it encodes."""
        return self._model.to_str().encode()

    def adds_bos(self) -> bool:
        return self._adds_bos

    def _plain(self) -> dict[str, int]:
        """The vocabulary without tokens that stand for themselves, whatever letters those have."""
        added = {token.content for token in self._model.get_added_tokens_decoder().values()}
        vocabulary = self._model.get_vocab(with_added_tokens=False)
        return {text: number for text, number in vocabulary.items() if text not in added}


@contextlib.contextmanager
def _named(file: epath.Path) -> Iterator[None]:
    """Names the file in whatever the library says about it."""
    try:
        yield
    except BaseException as error:
        # It raises bare Exception, and where its own code stops, what is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(f"{file} is no tokenizer.json ({shown(str(error))}); copy it again.") from None


def _kinds(decoder: dict[str, Any] | None) -> set[str]:
    if decoder is None:
        return set()
    if decoder["type"] == "Sequence":
        return set().union(*map(_kinds, decoder["decoders"]))
    return {decoder["type"]}


def _piece(text: str, byte_alphabet: dict[str, int] | None) -> bytes:
    if byte_alphabet is not None:
        return bytes(byte_alphabet[letter] for letter in text)
    if match := re.fullmatch("<0x([0-9A-Fa-f]{2})>", text):
        return bytes([int(match[1], 16)])
    return text.replace("\u2581", " ").encode()


def _byte_alphabet() -> dict[str, int]:
    """The letter that byte-level BPE (GPT-2) writes for each byte: itself if visible, else from U+0100 on."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(0x100 + index): byte for index, byte in enumerate(hidden)}
