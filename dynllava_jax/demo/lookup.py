"""Attention that begins by looking up: in one layer, a name finds the patches that show what it names and fetches
their place, colour and size; a place finds its patches and fetches their names.

The tower's pretraining put each patch close to its words (`words`), so these heads can be written down. Learned from
nothing, a decoder of this size takes far longer to find them than to learn the rest of the task.

- Words and patches lie in turned coordinates, so that a word does not find itself. What is fetched is turned once more,
  to where the vocabulary head reads it, so that the word just read does not hide the one to be said.
- A query that names nothing rests on the first token of the text, whose value is zero.
- Queries and keys meet in the pairs of dimensions that RoPE hardly turns.

D decoder features, V vocabulary, N words of all groups, C codes of a head, F words it fetches,
G key/value heads, R query heads of each, E head dimension.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from dynllava_jax.config.decoder import DecoderConfig
from dynllava_jax.errors import InputError
from dynllava_jax.nn.rope import inverse_frequencies

SIZE = 0.5
"""Root mean square of a word's embedding and of a patch's projection. At a usual initialisation's, 0.02, the first
steps of training forget what was learned."""
_HEAD_SIZE = 0.03
_MARK = 0.5
"""How much of a word says that it is one."""
_FOUND, _REST = 12.0, 8.0
"""Logits of a patch that is named, and of the first token; other patches have 0."""
_FETCHED = 0.5
_LONGEST, _STILL = 768, 0.5
"""A pair of dimensions that turns less than 0.5 rad over 768 positions hardly turns."""
_RIDGE, _SILENT = 0.3, 0.25
"""Of the fitted maps: penalty, and weight of what they shall be silent to."""


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


class _Frame(NamedTuple):
    """Two reserved directions, the projection onto what is left beside them, and two turns of that."""

    word: Float[np.ndarray, " D"]
    first: Float[np.ndarray, " D"]
    rest: Float[np.ndarray, "D D"]
    patch: Float[np.ndarray, "D D"]
    said: Float[np.ndarray, "D D"]


def looking_up(
    config: DecoderConfig,
    learned: Mapping[str, np.ndarray],
    attention: Mapping[str, np.ndarray],
    groups: Mapping[str, Float[np.ndarray, "_ V"]],
    first_token: int,
    seed: int = 0,
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Words, projector and one layer's attention such that the layer looks up.

    Args:
        config: of the decoder. Three key/value heads look up, the others stay as they are.
        learned: `embedding` [V, D], and `kernel` [., D] and `bias` [D] of the projector's last layer.
        attention: the layer's kernels, `query`, `key`, `value` and `out`.
        groups: `words.groups`.
        first_token: id of the token that every text begins with.
        seed: of the directions.

    Returns:
        `learned` anew with the vocabulary head as `head` [D, V], and `attention` anew.

    Raises:
        InputError: too few key/value heads, or too few dimensions that RoPE leaves alone.
    """
    rng = np.random.default_rng(seed)
    width, heads, dims = config.hidden_size, config.num_kv_heads, config.head_dim
    frame = _frame(width, rng)
    table = _unit(learned["embedding"] @ frame.rest)
    words = {group: _unit(rows @ table) for group, rows in groups.items()}
    nameless = table[sum(rows.sum(0) for rows in groups.values()) == 0]
    lookups = list(_lookups(words))
    *room, resting = _still(config, lookups)
    query, key, value = (
        np.array(attention[name], np.float64).reshape(width, heads, -1, dims) for name in ("query", "key", "value")
    )
    out = np.array(attention["out"], np.float64).reshape(heads, -1, dims, width)
    for head, lookup in enumerate(lookups):
        spelled = np.concatenate([*words.values()])
        ask = frame.rest @ _ridge(spelled, lookup.codes, nameless)
        show = frame.patch.T @ _ridge(spelled, lookup.codes, table @ frame.patch.T)
        met = (_marked(lookup.word, frame) @ ask) @ (lookup.patch @ frame.patch @ show)
        at = [*room, *(pair + dims // 2 for pair in room)][: lookup.codes.shape[1]]
        query[:, head], key[:, head] = 0, 0
        query[:, head, :, at] = _share(_FOUND / met, config) * ask.T[..., None]
        key[:, head, :, at] = _share(_FOUND / met, config) * show.T[..., None]
        query[:, head, :, resting] = (
            _share(_REST, config) * frame.word[:, None] / (_marked(table[0], frame) @ frame.word)
        )
        key[:, head, :, resting] = _share(_REST, config) * frame.first[:, None]
        basis = np.linalg.qr(np.concatenate([lookup.fetched.T, rng.normal(size=(width, dims))], axis=1))[0][:, :dims]
        value[:, head] = _FETCHED**0.5 * (frame.patch.T @ basis)[:, None]
        out[head] = _FETCHED**0.5 / out.shape[1] * (basis.T @ frame.said)
    embedding = SIZE * width**0.5 * _marked(table, frame)
    embedding[first_token] = SIZE * width**0.5 * frame.first
    anew = {"embedding": embedding, "head": _HEAD_SIZE * width**0.5 * (table @ frame.said).T}
    anew |= {name: learned[name] @ frame.patch for name in ("kernel", "bias")}
    kernels = {"query": query, "key": key, "value": value, "out": out}
    kernels = {name: kernel.reshape(attention[name].shape) for name, kernel in kernels.items()}
    return _float32(anew), _float32(kernels)


def _lookups(words: Mapping[str, Float[np.ndarray, "_ D"]]) -> Iterator[_Lookup]:
    """The things by name and plural, half of them a head, and the places."""
    things = len(words["plural"])
    told = np.concatenate([words[group] for group in ("row", "column", "colour", "size")])
    for half in np.array_split(np.arange(things), 2):
        code = np.eye(things)[:, half]
        patch = sum(words[group][half[0]] for group in ("name", "plural"))
        patch = _unit(patch + sum(words[group][0] for group in ("size", "row", "column")))
        yield _Lookup(_codes(words, name=code, plural=code), told, words["name"][half[0]], patch)
    rows, columns = len(words["row"]), len(words["column"])
    code = np.eye(rows + columns)
    patch = _unit(sum(words[group][0] for group in ("name", "plural", "size", "row", "column")))
    shown = np.concatenate([words["name"][:things], words["size"]])
    yield _Lookup(_codes(words, row=code[:rows], column=code[rows:]), shown, words["row"][0], patch)


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


def _frame(width: int, rng: np.random.Generator) -> _Frame:
    word, first = np.linalg.qr(rng.normal(size=(width, 2)))[0].T
    rest = np.eye(width) - np.outer(word, word) - np.outer(first, first)
    patch, said = (np.linalg.qr(rng.normal(size=(width, width)))[0] for _ in range(2))
    return _Frame(word, first, rest, rest @ patch @ rest, said)


def _marked(words: Float[np.ndarray, "*B D"], frame: _Frame) -> Float[np.ndarray, "*B D"]:
    return _unit(words + _MARK * frame.word)


def _share(logit: float, config: DecoderConfig) -> float:
    """What query and key are each multiplied with, that unit vectors which agree have this logit after the norm."""
    return (logit * config.head_dim**0.5 / config.hidden_size) ** 0.5


def _ridge(
    seen: Float[np.ndarray, "N D"], wanted: Float[np.ndarray, "N C"], silent: Float[np.ndarray, "M D"]
) -> Float[np.ndarray, "D C"]:
    """The linear map from what is seen to what is wanted, and to zero from what shall be silent."""
    gram = seen.T @ seen + _SILENT * silent.T @ silent + _RIDGE * np.eye(seen.shape[1])
    return np.linalg.solve(gram, seen.T @ wanted)


def _unit(x: Float[np.ndarray, "*B D"]) -> Float[np.ndarray, "*B D"]:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def _float32(values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: value.astype(np.float32) for name, value in values.items()}
