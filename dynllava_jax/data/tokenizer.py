"""Text to token ids and back, from the files that a checkpoint carries; `transformers` is not needed."""

import codecs
import dataclasses
import hashlib
from collections.abc import Iterable

from etils import epath

from dynllava_jax.data.hf_tokenizer import HfTokenizer
from dynllava_jax.data.llama_tokenizer import LlamaTokenizer
from dynllava_jax.data.special_tokens import SpecialTokens
from dynllava_jax.errors import InputError, shown

FILES = ("tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
"""What a checkpoint carries of a tokenizer, as far as it has them."""


_REPLACE_EACH = "dynllava_jax.replace_each"


def _replace_each_byte(error: UnicodeError) -> tuple[str, int]:
    """One U+FFFD per byte, as sentencepiece has it; Python's own `replace` writes one per broken character."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\N{REPLACEMENT CHARACTER}" * (error.end - error.start), error.end


codecs.register_error(_REPLACE_EACH, _replace_each_byte)

Backend = LlamaTokenizer | HfTokenizer


@dataclasses.dataclass(frozen=True, eq=False)
class Tokenizer:
    """A tokenizer: `load` one.

    Attributes:
        bos_id: begin of text, or None where the vocabulary has none.
        eos_id: end of an answer.
        pad_id: never seen by the model; some id that exists.
        vocab_size: one more than the highest id.
        adds_bos: whether a prompt begins with `bos_id`.
        legacy: whether text behind a special token is tokenised as the beginning of a text (transformers' `legacy`).
    """

    backend: Backend
    bos_id: int | None
    eos_id: int
    pad_id: int
    vocab_size: int
    adds_bos: bool
    legacy: bool
    _pieces: dict[int, bytes]
    _special: frozenset[int]

    @staticmethod
    def load(folder: epath.PathLike) -> "Tokenizer":
        """Reads `tokenizer.model` (sentencepiece, Llama's conventions), else `tokenizer.json`.

        Raises:
            InputError: neither is there, a file cannot be read, or there is no end-of-sequence token.
        """
        try:
            return Tokenizer._load(epath.Path(folder))
        except UnicodeDecodeError as error:  # damage that the libraries notice when a piece is looked at
            raise InputError(f"The tokenizer in {folder} is damaged: a piece is no text ({error}).") from None

    @staticmethod
    def _load(folder: epath.Path) -> "Tokenizer":
        special = SpecialTokens.read(folder)
        backend: Backend
        if (file := folder / "tokenizer.model").is_file():
            backend = LlamaTokenizer(file, special)
        elif (file := folder / "tokenizer.json").is_file():
            backend = HfTokenizer(file, special)
        else:
            raise InputError(f"{folder} has neither tokenizer.model nor tokenizer.json; copy the checkpoint's into it.")
        bos, eos, pad, unk = (
            None if (name := backend.roles.get(role)) is None else backend.id_of(name)
            for role in ("bos", "eos", "pad", "unk")
        )
        if eos is None:
            raise InputError(f"{file} names no end-of-sequence token; set eos_token in tokenizer_config.json.")
        if bos is None and "bos" in special.roles and backend.adds_bos():  # and would not, without a word
            raise InputError(
                f"{file} has no token {shown(special.roles['bos'])}, which the files beside it name as bos_token; copy "
                "them again."
            )
        pieces = backend.pieces()
        named = {token for token in (bos, eos, pad, unk) if token is not None}
        return Tokenizer(
            backend=backend,
            bos_id=bos,
            eos_id=eos,
            pad_id=next(token for token in (pad, unk, eos) if token is not None),
            vocab_size=max(pieces) + 1,
            adds_bos=bos is not None and backend.adds_bos(),
            legacy=backend.legacy,
            _pieces=pieces,
            _special=backend.special_ids() | named,
        )

    def encode(self, text: str, *, add_bos: bool) -> list[int]:
        """Token ids; special tokens written in the text (`</s>`) become their ids, as in the official code."""
        ids = self.backend.encode(text)
        return [self.bos_id, *ids] if add_bos and self.bos_id is not None else ids

    def fingerprint(self) -> str:
        """Equal for tokenizers that encode alike: what was measured with one holds for the other."""
        settings = repr((self.bos_id, self.eos_id, self.adds_bos)).encode()
        return hashlib.sha256(settings + self.backend.serialized()).hexdigest()

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """The text of `ids`; each byte that is no UTF-8 and each id beyond the vocabulary reads U+FFFD."""
        stream = StreamDecoder(self, skip_special=skip_special)
        return stream.push(ids) + stream.finish()


class StreamDecoder:
    """Decodes an answer as it grows: what `push` and `finish` return, joined, is `decode` of all ids.

    A character whose bytes are spread over several tokens appears when it is complete.
    """

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip_special = skip_special
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors=_REPLACE_EACH)
        self._at_start = tokenizer.backend.strips_first_space

    def push(self, ids: Iterable[int]) -> str:
        """The text that has become certain with these ids; often empty."""
        return self._utf8.decode(b"".join(map(self._bytes, ids)))

    def finish(self) -> str:
        """What was held back; the decoder is then ready for another answer."""
        text = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        self._at_start = self._tokenizer.backend.strips_first_space
        return text

    def _bytes(self, token: int) -> bytes:
        if self._skip_special and token in self._tokenizer._special:
            return b""
        piece = self._tokenizer._pieces.get(int(token), b"\xef\xbf\xbd")
        at_start, self._at_start = self._at_start, False
        return piece[1:] if at_start and piece.startswith(b" ") else piece
