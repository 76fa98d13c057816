"""One sample as LLaVA writes it in JSON: an id, pictures, and a conversation about them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from dynllava_jax.data.templates import Turn
from dynllava_jax.errors import InputError, shown


class SampleError(InputError):
    """A sample that cannot be used. A run stops at it or leaves its row empty, as `data.on_error` says.

    Attributes:
        id: the sample's.
        reason: a few words, the same for all samples with this fault, so that they can be counted.
        detail: what is special about this one.
    """

    def __init__(self, id: str, reason: str, detail: str = "") -> None:
        super().__init__(f"Sample {id!r}: {reason}{detail and f' ({detail})'}.")
        self.id, self.reason, self.detail = id, reason, detail

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleError, (self.id, self.reason, self.detail)


@dataclasses.dataclass(frozen=True)
class Record:
    """A conversation and where its pictures are.

    Attributes:
        id: unique in a well-made data set, but nothing depends on it.
        images: paths relative to the source's image folder, or whatever its `picture` reads: file bytes, an array.
        turns: questions with answers. A question may hold `<image>` marks, as many in all as there are pictures.
    """

    id: str
    images: tuple[str | bytes | np.ndarray, ...]
    turns: tuple[Turn, ...]


def read_record(value: Any, where: str) -> Record:
    """A sample `{"id", "image": path or list of them, "conversations": [{"from", "value"}, …]}`.

    `images` is read as `image` is. An answer that opens a conversation is left out, as by the official preprocessing of
    all templates but v0.

    Args:
        value: what the JSON parser gave.
        where: file and place; also the id of a sample without one.

    Raises:
        SampleError: names `where`, the id and the field that is missing or wrong.
    """
    if not isinstance(value, Mapping):
        raise SampleError(where, "malformed record", f"{where} is no JSON object")
    id = where if value.get("id") is None else value["id"]
    if not isinstance(id, (str, int, float)) or isinstance(id, bool):
        raise SampleError(where, "malformed record", f"its id {shown(id)} is no text and no number")
    id = str(id)
    if not _is_text(id):
        raise SampleError(where, "malformed record", f"its id {_HALF}")

    def wrong(what: str) -> SampleError:
        return SampleError(id, "malformed record", f"{where}: {what}")

    one, several = (_listed(value.get(key)) for key in ("image", "images"))
    if one and several:
        raise wrong("it has image and images; leave one of them out")
    images = one or several
    if not all(isinstance(image, (str, bytes, np.ndarray)) and len(image) for image in images):
        raise wrong("image must be a path or a list of paths")
    if not _is_text(*(image for image in images if isinstance(image, str))):
        raise wrong(f"its image path {_HALF}")
    sentences = value.get("conversations")
    if not isinstance(sentences, (list, tuple)) or not sentences:
        raise wrong("conversations must be a list of questions and answers")
    texts = []
    for number, sentence in enumerate(sentences):
        speaker, text = (sentence.get(key) for key in ("from", "value")) if isinstance(sentence, Mapping) else (0, 0)
        if speaker not in ("human", "gpt") or not isinstance(text, str):
            raise wrong(f'conversations[{number}] must be {{"from": "human" or "gpt", "value": text}}')
        if number == 0 and speaker == "gpt":
            continue
        if speaker != ("human", "gpt")[len(texts) % 2]:
            raise wrong(f"conversations[{number}] is a second one from {speaker} in a row")
        texts.append(text)
    if not _is_text(*texts):
        raise wrong(f"its text {_HALF}")
    if not texts or len(texts) % 2:
        raise wrong("the last question has no answer")
    return Record(id, images, tuple(map(Turn, texts[::2], texts[1::2])))


def _listed(images: Any) -> tuple[Any, ...]:
    if images is None:
        return ()
    return tuple(images) if isinstance(images, (list, tuple)) else (images,)


_HALF = "has half a character (a lone surrogate)"


def _is_text(*texts: str) -> bool:
    """Whether they can be written down; JSON may escape half of a character."""
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        return False
    return True
