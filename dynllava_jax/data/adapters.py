"""From examples of public TFDS data sets to LLaVA samples; `data.adapter` names one, or a function of your own.

An adapter takes one example as TFDS gives it without TensorFlow (text is bytes, pictures are the bytes of their file)
and returns a dict with `id`, `images` (file bytes or arrays, a list or one) and `conversations`, as LLaVA's JSON has
them. It may raise ValueError for an example that makes no sample, such as one of a test split; that is a bad sample.
"""

import collections
from collections.abc import Mapping
from typing import Any

from dynllava_jax.data.prompt import IMAGE_MARK

Example = Mapping[str, Any]

_SHORT = "Answer the question using a single word or phrase."
_CAPTION = "Provide a one-sentence caption for the provided image."


def vqa(example: Example) -> dict[str, Any]:
    """VQAv2 and its kin: `image`, `question`, `question_id`, `answers` (a list of texts); the commonest is learned.

    The question is asked as LLaVA-1.5 asks for short answers.
    """
    answers = collections.Counter(map(_text, example["answers"]))
    if not answers:
        raise ValueError("it has no answer")
    question = f"{IMAGE_MARK}\n{_text(example['question'])}\n{_SHORT}"
    return _sample(_text(example["question_id"]), example["image"], question, answers.most_common(1)[0][0])


def coco_captions(example: Example) -> dict[str, Any]:
    """`coco_captions`: `image`, `image/id`, `captions` with `text`; the first of the five is learned."""
    captions = [_text(caption) for caption in example["captions"]["text"]]
    if not captions:
        raise ValueError("it has no caption")
    return _sample(_text(example["image/id"]), example["image"], f"{IMAGE_MARK}\n{_CAPTION}", captions[0].strip())


def _sample(id: str, image: Any, question: str, answer: str) -> dict[str, Any]:
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": id, "images": [image], "conversations": turns}


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
