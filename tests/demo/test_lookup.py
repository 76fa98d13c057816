"""Attention that begins by looking up, and by gathering what was found."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from dynllava_jax.config.decoder import DecoderConfig
from dynllava_jax.config.presets import demo
from dynllava_jax.demo import coordinates, embedded, words
from dynllava_jax.demo.catalogue import OBJECTS
from dynllava_jax.demo.lookup import gather, look_up
from dynllava_jax.errors import InputError
from dynllava_jax.nn.rope import rope, rotate

CONFIG = demo().decoder
GROUPS = words.groups(embedded.tokenizer(), CONFIG.vocab_size)
WIDTH, LENGTH = CONFIG.hidden_size, CONFIG.hidden_size**0.5
FIRST = 1


class Made(NamedTuple):
    """Two layers' kernels, and the words that they were made for."""

    words: coordinates.Words
    before: dict[str, np.ndarray]
    lookup: dict[str, np.ndarray]
    gather: dict[str, np.ndarray]


def make(config: DecoderConfig = CONFIG) -> Made:
    rng = np.random.default_rng(0)
    heads = {"query": config.num_heads, "key": config.num_kv_heads, "value": config.num_kv_heads}
    attention = {name: 0.02 * rng.normal(size=(WIDTH, count * config.head_dim)) for name, count in heads.items()}
    attention["out"] = 0.02 * rng.normal(size=(config.num_heads * config.head_dim, WIDTH))
    laid_out = coordinates.lay_out(rng.normal(size=(CONFIG.vocab_size, WIDTH)), GROUPS, seed=0)
    return Made(laid_out, attention, look_up(config, laid_out, attention), gather(config, laid_out, attention))


@pytest.fixture(scope="module")
def made() -> Made:
    return make()


def scene(laid_out: coordinates.Words) -> np.ndarray:
    """[3·6, D]: three patches of each of six things, thing i at place i, as the tower's pretraining leaves them."""
    rng, rows = np.random.default_rng(1), []
    for thing in range(6):
        shown = (("name", thing), ("plural", thing), ("row", thing // 3), ("column", thing % 3), ("size", thing % 2))
        vector = sum((laid_out.groups[group][number] for group, number in shown), np.zeros(WIDTH))
        rows += [vector + 0.7 * rng.normal(size=WIDTH) / LENGTH for _ in range(3)]
    return LENGTH * coordinates.unit(np.stack(rows) @ laid_out.frame.patch)


def attend(kernels: dict[str, np.ndarray], x: np.ndarray, *, turned: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Weights [G, S] of the last row's query, and what the layer adds to it [D]."""
    parts = [(x @ kernels[name]).reshape(len(x), -1, CONFIG.head_dim) for name in ("query", "key", "value")]
    query, key, value = (jnp.asarray(part.swapaxes(0, 1)[None], jnp.float32) for part in parts)
    if turned:
        by = rope(CONFIG, jnp.arange(len(x))[None])
        query, key = rotate(query, by), rotate(key, by)
    scores = np.einsum("ge,gse->gs", query[0, :, -1], key[0]) / CONFIG.head_dim**0.5
    weights = np.exp(scores - scores.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    return weights, np.einsum("gs,gse->ge", weights, value[0]).reshape(-1) @ kernels["out"]


def tokens(*spelled: str) -> list[int]:
    found = [embedded.tokenizer().encode(word, add_bos=False) for word in spelled]
    assert all(len(ids) == 1 for ids in found)
    return [ids[0] for ids in found]


def attended(made: Made, word: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a word's query attends to: the first token [G], each thing's patches [G, 6]; and the layer's output [D].

    Without rotation: in the dimensions that are used it is small.
    """
    text = coordinates.embedding(made.words, FIRST)[[FIRST, *tokens(word)]] / coordinates.SIZE
    weights, out = attend(made.lookup, np.concatenate([text[:1], scene(made.words), text[1:]]))
    return weights[:, 0], weights[:, 1:-1].reshape(len(weights), 6, 3).sum(-1), out


def logits(made: Made, out: np.ndarray, *spelled: str) -> list[float]:
    return (out @ coordinates.head(made.words))[tokens(*spelled)].tolist()


@pytest.mark.parametrize("number", range(6))
def test_a_name_and_its_plural_find_the_thing(made: Made, number: int) -> None:
    for word in (OBJECTS[number].name, OBJECTS[number].plural):
        _, things, _ = attended(made, word)
        assert things[0, number] > 0.9


def test_a_place_finds_its_things(made: Made) -> None:
    _, things, _ = attended(made, "bottom")
    assert things[2, 3:].sum() > 0.95
    _, things, _ = attended(made, "middle")
    assert things[2, [1, 4]].sum() > 0.95


@pytest.mark.parametrize("word", ["picture", "large", OBJECTS[7].name])
def test_what_finds_nothing_rests_on_the_first_token(made: Made, word: str) -> None:
    resting, _, _ = attended(made, word)
    assert (resting[:2] > 0.8).all()


def test_what_is_fetched_can_be_said(made: Made) -> None:
    """The vocabulary head reads the place of the thing asked for, not the word that asked."""
    _, _, out = attended(made, OBJECTS[3].name)
    top, bottom, left, middle, right, asked = logits(
        made, out, "top", "bottom", "left", "middle", "right", OBJECTS[3].name
    )
    assert bottom > max(top, asked)
    assert left > max(middle, right)


def test_what_was_fetched_nearby_is_gathered(made: Made) -> None:
    """Five words after the one that fetched it, more than a hundred after it."""
    _, _, fetched = attended(made, OBJECTS[3].name)
    (word,) = tokens("picture")
    text = coordinates.embedding(made.words, FIRST)[word] / coordinates.SIZE

    def gain(distance: int) -> float:
        with_it = np.repeat(text[None], 160, axis=0)
        with_it[-1 - distance] += fetched
        _, out = attend(made.gather, with_it, turned=True)
        bottom, top = logits(made, out, "bottom", "top")
        return bottom - top

    _, nothing = attend(made.gather, np.repeat(text[None], 160, axis=0), turned=True)
    bottom, top = logits(made, nothing, "bottom", "top")
    near, far = (gain(distance) - (bottom - top) for distance in (5, 100))
    assert near > 5 * abs(far)


def test_the_other_heads_stay(made: Made) -> None:
    for kernels, changed in ((made.lookup, 3), (made.gather, 2)):
        columns = slice(changed * CONFIG.head_dim, None)
        assert np.allclose(kernels["query"][:, columns], made.before["query"][:, columns])


@pytest.mark.parametrize("change", [{"num_kv_heads": 2}, {"rope_theta": 1e4}])
def test_a_decoder_without_room_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(InputError, match="Raise num_kv_heads, head_dim or rope_theta"):
        make(dataclasses.replace(CONFIG, **change))
