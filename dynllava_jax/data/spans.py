"""Which token is what: system prompt, image, prompt, last instruction, answer.

Axis legend: S sequence (image slots included), P slots of one image.
"""

import dataclasses
import enum
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from dynllava_jax.data.prompt import IMAGE_TOKEN
from dynllava_jax.errors import InputError

IGNORE = -100
"""Label of a token that is not trained on."""


class Kind(enum.IntEnum):
    """What a token is; the value that `Batch.kind` holds."""

    PAD = 0
    SYSTEM = 1
    IMAGE = 2
    PROMPT = 3
    LAST_INSTRUCTION = 4
    ANSWER = 5


@dataclasses.dataclass(frozen=True, eq=False)
class Sample:
    """One conversation with a slot for every image feature, not padded.

    Attributes:
        tokens: ids, 0 at image slots.
        kind: a `Kind` each.
        labels: ids to predict, IGNORE elsewhere and at image slots; None at inference.
        image_starts: first slot of each image.
        image_tokens: P.
    """

    tokens: Int[np.ndarray, " S"]
    kind: Int[np.ndarray, " S"]
    labels: Int[np.ndarray, " S"] | None
    image_starts: tuple[int, ...]
    image_tokens: int

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def image_count(self) -> int:
        return len(self.image_starts)

    @property
    def image_index_map(self) -> Int[np.ndarray, " S"]:
        """Which image feature stands in a slot, counted through all images; -1 where there is none."""
        image = self.kind == Kind.IMAGE
        return np.where(image, np.cumsum(image) - 1, -1).astype(np.int32)

    def spans(self) -> dict[str, list[int]]:
        """[start, end) of each part, as the official `input_embeds_indices` gives them.

        Raises:
            ValueError: the sample has no image, or several; the official spans know exactly one.
        """
        if self.image_count != 1:
            raise ValueError(f"official spans are those of one image, not of {self.image_count}")
        start = self.image_starts[0]
        image_end = start + self.image_tokens
        answer = self.length - int(np.sum(self.kind == Kind.ANSWER))
        last_instruct = answer - int(np.sum(self.kind == Kind.LAST_INSTRUCTION))
        return {
            "system": [0, start],
            "image": [start, image_end],
            "instruct": [image_end, answer],
            "answer": [answer, self.length],
            "last_instruct": [last_instruct, answer],
        }


def expand(
    ids: Sequence[int] | np.ndarray,
    labels: Sequence[int] | np.ndarray | None,
    *,
    image_tokens: int,
    round_ids: Sequence[int],
    max_length: int | None = None,
) -> Sample:
    """Puts `image_tokens` slots where `ids` has IMAGE_TOKEN and says what every token is.

    The spans are the official ones (`prepare_inputs_labels_for_multimodal`): the answer is what follows the last
    label IGNORE (empty without labels); the last instruction starts at the last `round_ids` between the last image
    and the answer, or right after that image if they are not there. Beyond the official code the images may be
    several, anywhere, or none: then all before the answer is SYSTEM and never dropped.

    Args:
        ids: token ids with IMAGE_TOKEN.
        labels: as many, or None.
        image_tokens: P.
        round_ids: what opens a user's turn; () never matches.
        max_length: longer samples are cut, slots counted.

    Raises:
        InputError: no tokens, labels of another length, or a cut through an image.
    """
    ids = np.asarray(ids, np.int32)
    if ids.ndim != 1 or not ids.size:
        raise InputError(f"A sample needs a row of at least one token id, not an array of shape {ids.shape}.")
    is_image = ids == IMAGE_TOKEN
    marks = np.flatnonzero(is_image)
    if labels is not None:
        labels = np.asarray(labels, np.int32)
        if labels.shape != ids.shape:
            raise InputError(f"A sample has {ids.size} token ids but labels of shape {labels.shape}; give one each.")
        labels = np.where(is_image, IGNORE, labels)

    last_image = int(marks[-1]) + 1 if marks.size else 0
    answer = ids.size
    if labels is not None:
        ignored = np.flatnonzero(labels == IGNORE)
        answer = int(ignored[-1]) + 1 if ignored.size else 0
    kind = np.full(ids.shape, Kind.PROMPT if marks.size else Kind.SYSTEM, np.int32)
    if marks.size:
        kind[: marks[0]] = Kind.SYSTEM
        kind[last_image + _last_match(ids[last_image:answer], round_ids) : answer] = Kind.LAST_INSTRUCTION
    kind[answer:] = Kind.ANSWER
    kind[is_image] = Kind.IMAGE

    repeats = np.where(is_image, image_tokens, 1)
    starts = tuple(int(mark + index * (image_tokens - 1)) for index, mark in enumerate(marks))
    kept = slice(None, max_length)
    if max_length is not None and starts and starts[-1] + image_tokens > max_length:
        raise InputError(
            f"Cutting the sample to {max_length} tokens would cut its image {len(starts)}, which takes the tokens "
            f"{starts[-1]} to {starts[-1] + image_tokens - 1}; shorten the text before it or raise max_length."
        )
    return Sample(
        tokens=np.repeat(np.where(is_image, 0, ids), repeats)[kept],
        kind=np.repeat(kind, repeats)[kept],
        labels=None if labels is None else np.repeat(labels, repeats)[kept],
        image_starts=starts,
        image_tokens=image_tokens,
    )


def _last_match(ids: np.ndarray, pattern: Sequence[int]) -> int:
    """Where `pattern` begins for the last time in `ids`; 0 if it does not."""
    size = len(pattern)
    if not 0 < size <= ids.size:
        return 0
    matches = np.flatnonzero((np.lib.stride_tricks.sliding_window_view(ids, size) == np.asarray(pattern)).all(-1))
    return int(matches[-1]) if matches.size else 0
