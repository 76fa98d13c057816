"""Two layers of attention that begin by looking things up.

In the first a name finds the patches that show what it names and fetches their place, colour and size; a place finds
its patches and fetches their names. In the second, every word gathers what those just before it have fetched, so that
the end of a question knows what its words have found.

The tower's pretraining put each patch close to its words (`words`), so these heads can be written down. A decoder that
has to learn them too is still answering as if it were blind when one that has them knows colours and places
(docs/demo.md). Everything else it learns.

D decoder features, N words of all groups, C codes of a head, F words it fetches, G key/value heads, R query heads of
each, E head dimension, M rows that a map shall be silent to.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dynllava_jax.config.decoder import DecoderConfig
from dynllava_jax.demo.coordinates import MARK, Words, unit
from dynllava_jax.errors import InputError
from dynllava_jax.nn.rope import inverse_frequencies

_FOUND, _REST = 12.0, 8.0
"""Logits of a patch that is named, and of the first token, on which a query rests that names nothing; any other patch
has 0."""
_FETCHED = 0.5
_LONGEST, _STILL = 768, 0.5
"""A pair of dimensions that turns less than 0.5 rad over 768 positions hardly turns."""
_RIDGE, _SILENT = 0.3, 0.25
"""Of the fitted maps: penalty, and weight of what they shall be silent to."""
_NEAR = (0.01, 0.2)
"""Pairs that turn so much (rad) a position fit best at distance 0, and hardly any more 20 words away."""
_RECENT = 1.5
_GATHERED = 3.0

_TOLD = ("row", "column", "colour", "size")


class _Lookup(NamedTuple):
    """What one head does.

    Attributes:
        codes: what it looks for: each of its words has a code, all others zero.
        fetched: directions that it fetches.
        word, patch: an example, a word and a patch that it names.
    """

    codes: Float[np.ndarray, "N C"]
    fetched: Float[np.ndarray, "F D"]
    word: Float[np.ndarray, " D"]
    patch: Float[np.ndarray, " D"]


class _Kernels:
    """A layer's kernels, taken apart by head."""

    def __init__(self, config: DecoderConfig, attention: Mapping[str, np.ndarray]):
        width, heads, dims = config.hidden_size, config.num_kv_heads, config.head_dim
        self.query, self.key, self.value = (
            np.array(attention[name], np.float64).reshape(width, heads, -1, dims) for name in ("query", "key", "value")
        )
        self.out = np.array(attention["out"], np.float64).reshape(heads, -1, dims, width)

    def clear(self, head: int) -> None:
        for kernel in (self.query, self.key, self.value):
            kernel[:, head] = 0
        self.out[head] = 0

    def joined(self, like: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {name: getattr(self, name).reshape(kernel.shape).astype(np.float32) for name, kernel in like.items()}


def look_up(
    config: DecoderConfig, words: Words, attention: Mapping[str, np.ndarray], seed: int = 0
) -> dict[str, np.ndarray]:
    """One layer's kernels such that three of its key/value heads look up; the others stay as they are.

    Args:
        config: of the decoder.
        words: where words and patches lie.
        attention: the layer's `query`, `key`, `value` and `out`.
        seed: of what else the heads hand on.

    Raises:
        InputError: too few key/value heads, or too few dimensions that RoPE leaves alone.
    """
    rng, dims, frame = np.random.default_rng(seed), config.head_dim, words.frame
    kernels, lookups = _Kernels(config, attention), list(_lookups(words.groups))
    *room, resting = _still(config, lookups)
    for head, lookup in enumerate(lookups):
        kernels.clear(head)
        ask = frame.rest @ _ridge(words.spelled, lookup.codes, words.nameless)
        show = frame.patch.T @ _ridge(words.spelled, lookup.codes, words.table @ frame.patch.T)
        met = float((words.marked(lookup.word) @ ask) @ (lookup.patch @ frame.patch @ show))
        at = [*room, *(pair + dims // 2 for pair in room)][: lookup.codes.shape[1]]
        kernels.query[:, head, :, at] = _share(_FOUND / met, config) * ask.T[..., None]
        kernels.key[:, head, :, at] = _share(_FOUND / met, config) * show.T[..., None]
        kernels.query[:, head, :, resting] = _share(_REST, config) * _reads_mark(words)
        kernels.key[:, head, :, resting] = _share(_REST, config) * frame.first[:, None]
        basis = np.linalg.qr(np.concatenate([lookup.fetched.T, rng.normal(size=(len(frame.rest), dims))], 1))[0]
        kernels.value[:, head] = _FETCHED**0.5 * (frame.patch.T @ basis[:, :dims])[:, None]
        kernels.out[head] = _FETCHED**0.5 / kernels.out.shape[1] * (basis[:, :dims].T @ frame.said)
    return kernels.joined(attention)


def gather(config: DecoderConfig, words: Words, attention: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """One layer's kernels such that two of its key/value heads gather what the words nearby have fetched: one what is
    told of a thing, one the things' names. Arguments as for `look_up`.
    """
    kernels, frame = _Kernels(config, attention), words.frame
    turn = inverse_frequencies(config)
    near = np.flatnonzero((turn > _NEAR[0]) & (turn < _NEAR[1]))
    told = np.concatenate([words.groups[group] for group in _TOLD])
    for head, fetched in enumerate((told, words.groups["name"][: len(words.groups["plural"])])):
        kernels.clear(head)
        for kernel in (kernels.query, kernels.key):
            kernel[:, head, :, near] = _share(_RECENT, config) * _reads_mark(words)
        basis = (frame.said.T @ np.linalg.qr(fetched.T)[0])[:, : config.head_dim]
        kernels.value[:, head, :, : basis.shape[1]] = _GATHERED**0.5 * basis[:, None]
        kernels.out[head, :, : basis.shape[1]] = _GATHERED**0.5 / kernels.out.shape[1] * basis.T
    return kernels.joined(attention)


def _lookups(words: Mapping[str, Float[np.ndarray, "_ D"]]) -> Iterator[_Lookup]:
    """The things by name and plural, half of them a head, and the places."""
    things = len(words["plural"])
    told = np.concatenate([words[group] for group in _TOLD])
    for half in np.array_split(np.arange(things), 2):
        code = np.eye(things)[:, half]
        yield _Lookup(
            _codes(words, name=code, plural=code), told, words["name"][half[0]], _example(words, int(half[0]))
        )
    rows, columns = len(words["row"]), len(words["column"])
    code = np.eye(rows + columns)
    shown = np.concatenate([words["name"][:things], words["size"]])
    yield _Lookup(_codes(words, row=code[:rows], column=code[rows:]), shown, words["row"][0], _example(words, 0))


def _example(words: Mapping[str, Float[np.ndarray, "_ D"]], thing: int) -> Float[np.ndarray, " D"]:
    """A patch as the pretraining leaves it: between the words for it."""
    named = words["name"][thing] + words["plural"][thing]
    return unit(named + words["row"][0] + words["column"][0] + words["size"][0])


def _codes(words: Mapping[str, Float[np.ndarray, "_ D"]], **own: Float[np.ndarray, "_ C"]) -> Float[np.ndarray, "N C"]:
    """The codes of a head's own words, zero for the others; a group may have more words than codes."""
    width = next(iter(own.values())).shape[1]
    found = {group: np.zeros((len(rows), width)) for group, rows in words.items()}
    for group, code in own.items():
        found[group][: len(code)] = code
    return np.concatenate([*found.values()])


def _still(config: DecoderConfig, lookups: Sequence[_Lookup]) -> list[int]:
    """The pairs of dimensions that RoPE hardly turns, from fast to slow."""
    pairs = np.flatnonzero(inverse_frequencies(config) * _LONGEST < _STILL).tolist()
    needed = 1 + max(-(-lookup.codes.shape[1] // 2) for lookup in lookups)
    if config.num_kv_heads < len(lookups) or len(pairs) < needed:
        raise InputError(
            f"The demo's decoder looks up with {len(lookups)} key/value heads, each with {needed} pairs of dimensions "
            f"that RoPE turns less than {_STILL} rad over {_LONGEST} positions; this one has {config.num_kv_heads} "
            f"heads with {len(pairs)} of them. Raise num_kv_heads, head_dim or rope_theta."
        )
    return pairs


def _reads_mark(words: Words) -> Float[np.ndarray, "D 1"]:
    """1 for every word, 0 for patches and the first token."""
    return words.frame.word[:, None] * (1 + MARK**2) ** 0.5 / MARK


def _share(logit: float, config: DecoderConfig) -> float:
    """What query and key are each multiplied with, that unit vectors which agree have this logit after the norm."""
    return (logit * config.head_dim**0.5 / config.hidden_size) ** 0.5


def _ridge(
    seen: Float[np.ndarray, "N D"], wanted: Float[np.ndarray, "N C"], silent: Float[np.ndarray, "M D"]
) -> Float[np.ndarray, "D C"]:
    """The linear map from what is seen to what is wanted, and to zero from what shall be silent."""
    gram = seen.T @ seen + _SILENT * silent.T @ silent + _RIDGE * np.eye(seen.shape[1])
    return np.linalg.solve(gram, seen.T @ wanted)
