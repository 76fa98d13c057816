"""From a rendered conversation to token ids, with a place held for each image."""

from dynllava_jax.data.templates import Template
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.errors import InputError

IMAGE_MARK = "<image>"
IMAGE_TOKEN = -200
"""Stands in the ids where an image's features go (official `IMAGE_TOKEN_INDEX`)."""


def tokenize_prompt(tokenizer: Tokenizer, text: str, *, add_bos: bool | None = None) -> list[int]:
    """Token ids of `text` with IMAGE_TOKEN at every `<image>` (official `tokenizer_image_token`).

    The pieces between images are tokenised one by one, each as if it began a text; BOS comes once, in front.
    `add_bos` None does what the tokenizer's own settings say.
    """
    ids: list[int] = []
    for index, piece in enumerate(text.split(IMAGE_MARK)):
        if index:
            ids.append(IMAGE_TOKEN)
        ids += tokenizer.encode(piece, add_bos=index == 0 and (tokenizer.adds_bos if add_bos is None else add_bos))
    return ids


def continuation_ids(tokenizer: Tokenizer, template: Template, question: str) -> list[int]:
    """Token ids that a further question adds after the ids of the previous answer's end.

    Tokenised behind that end, so that they are what the whole conversation would give there. An answer that
    stopped before its end was fed (the usual case: EOS is never fed) needs the end's ids in front.
    """
    text = template.continuation(question)
    head, *tail = text.split(IMAGE_MARK)
    ids = _after_end(tokenizer, template, head)
    for piece in tail:
        ids += [IMAGE_TOKEN, *tokenizer.encode(piece, add_bos=False)]
    return ids


def round_ids(tokenizer: Tokenizer, template: Template) -> tuple[int, ...]:
    """Ids of the marker that opens a user's turn, as it stands behind an answer's end; () without roles.

    For the Llama tokenizer and "USER:" these are the official constants (11889, 29901).
    """
    return tuple(_after_end(tokenizer, template, template.marker)) if template.marker else ()


def place_images(question: str, count: int) -> str:
    """The question with one `<image>` per picture; when it names none, they go in front, one a line.

    Raises:
        InputError: the question names another number of images than there are.
    """
    named = question.count(IMAGE_MARK)
    if named == 0:
        return f"{IMAGE_MARK}\n" * count + question
    if named != count:
        raise InputError(f"The question has {named} {IMAGE_MARK} but {count} images were given; make them equal.")
    return question


def _after_end(tokenizer: Tokenizer, template: Template, text: str) -> list[int]:
    end = tokenizer.encode(template.end, add_bos=False)
    ids = tokenizer.encode(template.end + text, add_bos=False)
    # An end that is plain text ("###") may melt into what follows; then the text stands for itself.
    return ids[len(end) :] if ids[: len(end)] == end else tokenizer.encode(text, add_bos=False)
