"""A sentencepiece `tokenizer.model` read as Llama's tokenizer.

The conventions are those of transformers' slow `LlamaTokenizer`, which the official code uses
(`use_fast=False`): which spaces are put in front of what, and which special tokens a text may contain.
"""

import re

from etils import epath

from dynllava_jax.data.special_tokens import AddedToken, SpecialTokens
from dynllava_jax.errors import InputError

_SPACE = "\u2581"
# A protobuf message given twice is merged: this says normalizer_spec.add_dummy_prefix = false.
_NO_DUMMY_PREFIX = b"\x1a\x02\x18\x00"


class LlamaTokenizer:
    """The sentencepiece backend of `Tokenizer`.

    Attributes:
        roles: "bos", "eos", "unk", "pad" to the token's text, as far as they are known.
        strips_first_space: the space that a text's first piece begins with was put there by the tokenizer.
        legacy: what follows a special token gets a space in front too, as the beginning of a text does.
    """

    strips_first_space = True

    def __init__(self, file: epath.Path, special: SpecialTokens) -> None:
        import sentencepiece

        self.legacy = special.legacy
        self._prefix = _SPACE if special.add_prefix_space else ""
        self._add_bos = special.add_bos
        try:
            model = file.read_bytes() + (b"" if special.legacy else _NO_DUMMY_PREFIX)
            self._model = sentencepiece.SentencePieceProcessor(model_proto=model)  # pyright: ignore[reportCallIssue]
        except (OSError, RuntimeError) as error:
            raise InputError(f"{file} is no sentencepiece model ({error}); copy it again.") from None
        known = {role: getattr(self._model, f"{role}_id")() for role in ("bos", "eos", "unk")}
        known = {role: self._model.id_to_piece(number) for role, number in known.items() if number >= 0}
        self.roles = known | special.roles
        self._added = {token.text: token for token in special.added}
        if special.words:
            raise InputError(
                f"{file}: the added token {special.words[0]!r} is single_word, which is not served; say false in "
                "tokenizer_config.json if no text has it inside a word."
            )
        self._further = sorted(special.further)
        named = (*self.roles.values(), *self._further)
        for text in named:
            if text not in self._added and (number := self.id_of(text)) is not None:
                self._added[text] = AddedToken(text, number, special=True)
        self._named = frozenset(self._added[text].id for text in named if text in self._added)
        self._split = re.compile("|".join(map(_pattern, sorted(self._added.values(), key=lambda t: -len(t.text)))))
        self._shield = self.roles.get("unk", "")
        self._shield_length = len(self._model.encode(self._shield))

    def encode(self, text: str) -> list[int]:
        """Ids without BOS; special tokens inside the text are recognised."""
        if not text:
            return []
        if not self.legacy:
            text = self._prefix + text.replace(_SPACE, " ")
        ids: list[int] = []
        end = 0
        for match in self._split.finditer(text):
            ids += self._plain(text[end : match.start()])
            token = self._added[match.group(match.lastindex or 0)].id
            # The prefix was meant for words: in front of a special token it goes.
            if not self.legacy and token in self._named and ids == [self.id_of(_SPACE)]:
                ids = []
            ids.append(token)
            end = match.end()
        return ids + self._plain(text[end:])

    def id_of(self, token: str) -> int | None:
        if token in self._added:
            return self._added[token].id
        number = self._model.piece_to_id(token)
        return number if self._model.id_to_piece(number) == token else None

    def pieces(self) -> dict[int, bytes]:
        """The UTF-8 bytes that each id stands for; half a character is possible."""
        pieces = {number: self._piece(number) for number in range(self._model.vocab_size())}
        return pieces | {token.id: token.text.encode() for token in self._added.values()}

    def special_ids(self) -> frozenset[int]:
        model = self._model
        control = {
            number for number in range(model.vocab_size()) if model.is_control(number) or model.is_unknown(number)
        }
        return self._named | control | {token.id for token in self._added.values() if token.special}

    def serialized(self) -> bytes:
        """All that decides how it encodes."""
        settings = (self.legacy, self._prefix, sorted(self._added.items()), sorted(self.roles.items()), *self._further)
        return repr(settings).encode() + self._model.serialized_model_proto()

    def adds_bos(self) -> bool:
        return self._add_bos is not False

    def _plain(self, text: str) -> list[int]:
        if not text:
            return []
        if self.legacy or not text.startswith((_SPACE, " ")):
            return self._model.encode(text)
        # Some models strip spaces at the beginning of a text; behind a shield they stay.
        return self._model.encode(self._shield + text)[self._shield_length :]

    def _piece(self, number: int) -> bytes:
        piece = self._model.id_to_piece(number)
        if self._model.is_byte(number):
            return bytes([int(piece[1:-1], 16)])
        return piece.replace(_SPACE, " ").encode()


def _pattern(token: AddedToken) -> str:
    return (r"\s*" if token.lstrip else "") + f"({re.escape(token.text)})" + (r"\s*" if token.rstrip else "")
