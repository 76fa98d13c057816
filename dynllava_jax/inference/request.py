"""What a caller asks, and what comes back."""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any

import numpy as np

from dynllava_jax.errors import InputError, shown
from dynllava_jax.inference.sampling import GREEDY, Sampler


@dataclasses.dataclass(frozen=True)
class Request:
    """One question about any number of pictures.

    Attributes:
        question: text; `<image>` marks where each picture stands. Without a mark the pictures come first.
        images: paths, URLs, bytes, PIL images or uint8 arrays [H, W, 3].
        max_new_tokens: answer tokens at most; None: what the context leaves, 512 at most.
        sampler: how tokens are drawn.
        seed: of this request alone; the same seed gives the same answer in any company.
    """

    question: str
    images: Sequence[Any] = ()
    max_new_tokens: int | None = None
    sampler: Sampler = GREEDY
    seed: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.question, str) or not self.question.strip():
            raise InputError(f"The question must be text, not {shown(self.question)}.")
        try:
            self.question.encode()
        except UnicodeEncodeError:
            raise InputError(f"The question {shown(self.question)} has half a character (a lone surrogate).") from None
        check_wishes(self.max_new_tokens, self.sampler, self.seed)


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer.

    Attributes:
        text: the answer without special tokens.
        token_ids: its tokens, the one that ended it included.
        kept_image_tokens: for each image the patches whose tokens entered the deep stack, ascending.
        kept_output_tokens: per token 1 or 0, whether the deep stack stored it; None when it was never fed back.
        cache_tokens: tokens held by the `shallow` and by the `deep` stack at the end (0 without a cache).
        seconds: wall time of `prefill` and `decode`, shared by all requests of the batch.
    """

    text: str
    token_ids: list[int]
    kept_image_tokens: list[list[int]]
    kept_output_tokens: list[int | None]
    cache_tokens: dict[str, int]
    seconds: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return dataclasses.asdict(self)


def check_wishes(max_new_tokens: Any, sampler: Any, seed: Any) -> None:
    """Raises InputError when one of these is nothing that a `Request` can ask for, of whatever model."""
    if max_new_tokens is not None:
        check_count("max_new_tokens", max_new_tokens)
    if not isinstance(sampler, Sampler):
        raise InputError(
            f"sampler must be Greedy(), Temperature(…), TopK(…) or TopP(…) of dynllava_jax, not {sampler!r}."
        )
    if not _is_whole(seed) or not 0 <= seed < 2**32:
        raise InputError(f"seed must be a whole number in 0 … 4294967295, not {seed!r}.")


def check_switch(name: str, value: Any) -> None:
    """Raises InputError when `value`, called `name`, is neither True nor False: "no" would be taken for yes."""
    if not isinstance(value, (bool, np.bool_)):
        raise InputError(f"{name} must be True or False, not {value!r}.")


def check_count(name: str, value: Any) -> None:
    """Raises InputError when `value`, called `name`, is no whole number above 0."""
    if not _is_whole(value) or value < 1:
        raise InputError(f"{name} must be a whole number, 1 or more, not {value!r}.")


def _is_whole(value: Any) -> bool:
    # True is a number to Python, and numpy's integers are none of its int.
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)
