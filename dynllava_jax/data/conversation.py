"""A conversation becomes token ids and the labels that training asks for.

The masks are those of the official `preprocess_*` functions and found as they find them: parts are tokenised alone
and their lengths added up. Where the sum is not the whole, the official code warns of a "tokenization mismatch" and
ignores every label; here that is a bad sample.

S sequence, one place for each picture.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dynllava_jax.data.prompt import IMAGE_MARK, tokenize_prompt
from dynllava_jax.data.records import Record, SampleError
from dynllava_jax.data.spans import IGNORE
from dynllava_jax.data.templates import Template, Turn
from dynllava_jax.data.tokenizer import Tokenizer


class Tokenized(NamedTuple):
    """Token ids with IMAGE_TOKEN for each picture, and the same ids where they are trained on, IGNORE elsewhere."""

    ids: Int[np.ndarray, " S"]
    labels: Int[np.ndarray, " S"]


class _Form(NamedTuple):
    """A conversation in one text, and how many tokens are ignored and learned by turns from its beginning on."""

    text: str
    segments: list[tuple[int, int]]
    learn_rest: bool = False
    """What lies behind the segments is learned; otherwise nothing may lie there."""


class _Writer(NamedTuple):
    """What the forms need to know."""

    tokenizer: Tokenizer
    template: Template
    id: str
    has_image: bool

    def encode(self, text: str, *, begins: bool = True) -> list[int]:
        """Ids of a text by itself. Without a picture "<image>" is a word, as it is in talk about HTML."""
        add_bos = begins and self.tokenizer.adds_bos
        if self.has_image:
            return tokenize_prompt(self.tokenizer, text, add_bos=add_bos)
        return self.tokenizer.encode(text, add_bos=add_bos)

    def length(self, text: str) -> int:
        return len(self.encode(text))


def tokenize_conversation(tokenizer: Tokenizer, template: Template, record: Record) -> Tokenized:
    """Ids and labels of one sample, before images take their slots (`spans.expand`) and before any cut.

    Raises:
        SampleError: not as many `<image>` as pictures; an empty question or answer, or another conversation that the
            template has no form for; no token to learn, which is what comes of a text that holds the template's marks.
    """
    writer = _Writer(tokenizer, template, record.id, bool(record.images))
    form = _FORMS[template.training](writer, _turns(record))
    ids = np.array(writer.encode(form.text), np.int32)
    labels = ids.copy()
    position = 0
    for ignored, learned in form.segments:
        labels[position : position + ignored] = IGNORE
        position += ignored + learned
    if not form.learn_rest and position != ids.size:
        problem = (
            f"its rounds have {position} tokens but the whole {ids.size}; does it hold marks of {template.name}, or is "
            "the tokenizer not a Llama one?"
        )
        raise SampleError(record.id, "no supervised token", problem)
    if np.all(labels == IGNORE):
        raise SampleError(record.id, "no supervised token", "its answers have no tokens of their own")
    return Tokenized(ids, labels)


def _turns(record: Record) -> Sequence[Turn]:
    """Moves the one `<image>` of a question in front of it, as `preprocess_multimodal` does; several stay."""
    if not record.images:
        return record.turns
    marks = sum(text.count(IMAGE_MARK) for turn in record.turns for text in turn if text)
    if marks != len(record.images):
        problem = f"{marks} {IMAGE_MARK} in its text, {len(record.images)} pictures"
        raise SampleError(record.id, "<image> and pictures differ in number", problem)
    return [Turn(*(_in_front(text or "") for text in turn)) for turn in record.turns]


def _in_front(text: str) -> str:
    if text.count(IMAGE_MARK) != 1:
        return text
    return f"{IMAGE_MARK}\n{text.replace(IMAGE_MARK, '').strip()}".strip()


def _checked(writer: _Writer, turns: Sequence[Turn]) -> str:
    for number, turn in enumerate(turns, 1):
        if not turn.question or not turn.answer:
            what = "answer" if turn.question else "question"
            raise SampleError(writer.id, "empty question or answer", f"{what} {number}")
    return writer.template.render(turns)


def _by_rounds(writer: _Writer, turns: Sequence[Turn], cue: str, after_end: int) -> _Form:
    """`preprocess_v1`, `preprocess_llama_2`: each round alone has a BOS, which makes up for the end it lost.

    The 2 are that BOS and the blank behind the cue, which melts into the answer.

    Args:
        writer: tokenizer and template.
        turns: the conversation.
        cue: what a round is split at.
        after_end: tokens that a later round has less in its place than alone.
    """
    text = _checked(writer, turns)
    segments = [(1, 0)]
    for number, part in enumerate(text.split(writer.template.end.strip())):
        halves = part.split(cue)
        if len(halves) != 2:
            break
        less = after_end if number else 0
        ignored = max(writer.length(halves[0] + cue) - 2 - less, 0)
        segments.append((ignored, writer.length(part) - less - ignored))
    return _Form(text, segments)


def _v1(writer: _Writer, turns: Sequence[Turn]) -> _Form:
    template = writer.template
    return _by_rounds(writer, turns, template.cue + template.lead, 0 if writer.tokenizer.legacy else 1)


def _llama_2(writer: _Writer, turns: Sequence[Turn]) -> _Form:
    template = writer.template
    return _by_rounds(writer, turns, (template.cue + template.lead).lstrip(), 0)


def _chatml(writer: _Writer, turns: Sequence[Turn]) -> _Form:
    """Learns each answer and its end.

    The official `preprocess_mpt` leaves the ends out of its sum, so that nearly every sample is a mismatch; this is
    what it was before that (LLaVA 1.0).
    """
    text = _checked(writer, turns)
    template = writer.template
    segments = []
    for number, turn in enumerate(turns):
        # A later round is tokenised behind an end, as it stands in the text.
        before = template.end if number else ""
        head = before + (template.later if number else template.first) + turn.question + template.cue + template.lead
        given = len(writer.encode(before, begins=False))
        ignored, whole = (
            len(writer.encode(part, begins=not number)) - given for part in (head, f"{head}{turn.answer}{template.end}")
        )
        segments.append((ignored, whole - ignored))
    return _Form(text, segments)


def _v0(writer: _Writer, turns: Sequence[Turn]) -> _Form:
    """`_add_speaker_and_signal` and `_mask_targets`, whose form is not the one that v0 is prompted with.

    Each part is counted with a BOS that it has only when alone, so the mask moves by one with every part.
    """
    template = writer.template
    mark = f"{template.end} "
    header = template.first.split(template.end)[0] + "\n\n"
    text, segments = header, [(writer.length(header), 0)]
    for turn in turns:
        question = f"{mark}{template.later}{turn.question}\n"
        answer = f"{mark}{template.cue.removeprefix(template.end)}{template.lead}{turn.answer}\n"
        text += question + answer
        segments += [(0, 2), (max(writer.length(question) - 2, 0), writer.length(answer))]
    return _Form(text + mark, segments, learn_rest=True)


def _plain(writer: _Writer, turns: Sequence[Turn]) -> _Form:
    """`preprocess_plain`: the picture and its caption; what was asked is left out."""
    if len(turns) != 1 or not writer.has_image or IMAGE_MARK not in turns[0].question:
        problem = "it wants one question with <image> and one answer"
        raise SampleError(writer.id, "no sample for the plain template", problem)
    images = IMAGE_MARK * turns[0].question.count(IMAGE_MARK)
    text = writer.template.render([Turn(images, turns[0].answer or "")])
    return _Form(text, [(writer.length(images), 0)], learn_rest=True)


_FORMS: dict[str, Callable[[_Writer, Sequence[Turn]], _Form]] = {
    "v1": _v1,
    "llama_2": _llama_2,
    "mpt": _chatml,
    "v0": _v0,
    "plain": _plain,
}
