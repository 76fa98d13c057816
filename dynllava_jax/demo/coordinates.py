"""Where words and patches lie when the decoder's training begins.

Every word carries a mark that it is one, the text's first token is a direction of its own, and patches lie in turned
coordinates, so that a word does not find itself. What is fetched for a word (`lookup`) is turned once more, to where
the vocabulary head reads it, so that the word just read does not hide the one to be said.

*B leading axes, D decoder features, V vocabulary, N words of all groups, M tokens that name nothing.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

SIZE = 0.5
"""Root mean square of a word's embedding and of a patch's projection. At a usual initialisation's, 0.02, the first
steps of training forget what was learned."""
MARK = 0.5
"""How much of a word says that it is one."""
_HEAD_SIZE = 0.03


class Frame(NamedTuple):
    """Two reserved directions, the projection onto what is left beside them, and two turns of that."""

    word: Float[np.ndarray, " D"]
    first: Float[np.ndarray, " D"]
    rest: Float[np.ndarray, "D D"]
    patch: Float[np.ndarray, "D D"]
    said: Float[np.ndarray, "D D"]


class Words(NamedTuple):
    """Directions of all words, and of the groups of those that name what a patch shows; all of length one.

    Attributes:
        table: every token's.
        groups: by group of `words.groups`.
        nameless: of the tokens that name nothing.
        frame: what they lie in.
    """

    table: Float[np.ndarray, "V D"]
    groups: dict[str, Float[np.ndarray, "_ D"]]
    nameless: Float[np.ndarray, "M D"]
    frame: Frame

    @property
    def spelled(self) -> Float[np.ndarray, "N D"]:
        """The words of all groups, one group after the other."""
        return np.concatenate([*self.groups.values()])

    def marked(self, words: Float[np.ndarray, "*B D"]) -> Float[np.ndarray, "*B D"]:
        """Directions as text has them."""
        return unit(words + MARK * self.frame.word)


def lay_out(embedding: Float[np.ndarray, "V D"], groups: Mapping[str, Float[np.ndarray, "_ V"]], seed: int) -> Words:
    """The words of a pretrained embedding (`words`) in a frame that `seed` decides."""
    rng, width = np.random.default_rng(seed), embedding.shape[1]
    word, first = np.linalg.qr(rng.normal(size=(width, 2)))[0].T
    rest = np.eye(width) - np.outer(word, word) - np.outer(first, first)
    patch, said = (np.linalg.qr(rng.normal(size=(width, width)))[0] for _ in range(2))
    table = unit(embedding @ rest)
    named = sum(rows.sum(0) for rows in groups.values()) > 0
    return Words(
        table,
        {group: unit(rows @ table) for group, rows in groups.items()},
        table[~named],
        Frame(word, first, rest, rest @ patch @ rest, said),
    )


def embedding(words: Words, first_token: int) -> Float[np.ndarray, "V D"]:
    """Of the decoder; `first_token` is what every text begins with."""
    size = SIZE * words.table.shape[1] ** 0.5
    table = size * words.marked(words.table)
    table[first_token] = size * words.frame.first
    return table


def head(words: Words) -> Float[np.ndarray, "D V"]:
    """Of the vocabulary: it reads what was fetched."""
    return _HEAD_SIZE * words.table.shape[1] ** 0.5 * (words.table @ words.frame.said).T


def unit(x: Float[np.ndarray, "*B D"]) -> Float[np.ndarray, "*B D"]:
    """At length one."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)
