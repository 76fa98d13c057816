"""Attention that begins by looking up."""

import dataclasses

import numpy as np
import pytest

from dynllava_jax.config.decoder import DecoderConfig
from dynllava_jax.config.presets import demo
from dynllava_jax.demo import embedded, words
from dynllava_jax.demo.catalogue import OBJECTS
from dynllava_jax.demo.lookup import SIZE, looking_up
from dynllava_jax.errors import InputError

CONFIG = demo().decoder
GROUPS = words.groups(embedded.tokenizer(), CONFIG.vocab_size)
WIDTH, LENGTH = CONFIG.hidden_size, CONFIG.hidden_size**0.5
FIRST = 1


def looked_up(config: DecoderConfig = CONFIG) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    sizes = {
        "query": (WIDTH, config.num_heads),
        "key": (WIDTH, config.num_kv_heads),
        "value": (WIDTH, config.num_kv_heads),
    }
    attention = {name: rng.normal(size=(w, heads * config.head_dim)) for name, (w, heads) in sizes.items()}
    attention["out"] = rng.normal(size=(config.num_heads * config.head_dim, WIDTH))
    table = rng.normal(size=(CONFIG.vocab_size, WIDTH))
    # With this kernel the projector's input is what it projects.
    learned = {"embedding": table, "kernel": np.eye(WIDTH), "bias": np.zeros(WIDTH)}
    anew, kernels = looking_up(config, learned, attention, GROUPS, FIRST)
    unit = table / np.linalg.norm(table, axis=1, keepdims=True)
    return anew | {"before": unit}, kernels | {"kept": attention["query"]}


@pytest.fixture(scope="module")
def made() -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    return looked_up()


def scene(anew: dict[str, np.ndarray]) -> np.ndarray:
    """[3·6, D]: three patches of each of six things, thing i at place i, as the tower's pretraining leaves them."""

    def word(group: str, number: int) -> np.ndarray:
        direction = GROUPS[group][number] @ anew["before"]
        return direction / np.linalg.norm(direction)

    rng = np.random.default_rng(1)
    rows = []
    for thing in range(6):
        shown = (("name", thing), ("plural", thing), ("row", thing // 3), ("column", thing % 3), ("size", thing % 2))
        vector = sum((word(*each) for each in shown), np.zeros(WIDTH))
        rows += [vector + 0.3 * rng.normal(size=WIDTH) / LENGTH * np.linalg.norm(vector) for _ in range(3)]
    patches = np.stack(rows) @ anew["kernel"]
    return LENGTH * patches / np.linalg.norm(patches, axis=1, keepdims=True)


def attended(
    made: tuple[dict[str, np.ndarray], dict[str, np.ndarray]], word: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a word's query attends to: the first token [G], each thing's patches [G, 6]; and the layer's output [D].

    Without rotation: in the dimensions that are used it is small.
    """
    anew, kernels = made
    (token,) = embedded.tokenizer().encode(word, add_bos=False)
    text = anew["embedding"][[FIRST, token]] / SIZE
    x = np.concatenate([text[:1], scene(anew), text[1:]])
    query, key, value = ((x @ kernels[name]).reshape(len(x), -1, CONFIG.head_dim) for name in ("query", "key", "value"))
    scores = np.einsum("ge,sge->gs", query[-1], key) / CONFIG.head_dim**0.5
    weights = np.exp(scores - scores.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    out = np.einsum("gs,sge->ge", weights, value).reshape(-1) @ kernels["out"]
    return weights[:, 0], weights[:, 1:-1].reshape(len(weights), 6, 3).sum(-1), out


@pytest.mark.parametrize("number", range(6))
def test_a_name_and_its_plural_find_the_thing(made: tuple, number: int) -> None:
    for word in (OBJECTS[number].name, OBJECTS[number].plural):
        _, things, _ = attended(made, word)
        assert things[0, number] > 0.9


def test_a_place_finds_its_things(made: tuple) -> None:
    _, things, _ = attended(made, "bottom")
    assert things[2, 3:].sum() > 0.95
    _, things, _ = attended(made, "middle")
    assert things[2, [1, 4]].sum() > 0.95


@pytest.mark.parametrize("word", ["picture", "large", OBJECTS[7].name])
def test_what_finds_nothing_rests_on_the_first_token(made: tuple, word: str) -> None:
    resting, _, _ = attended(made, word)
    assert (resting[:2] > 0.8).all()


def test_what_is_fetched_can_be_said(made: tuple) -> None:
    """The vocabulary head reads the place of the thing asked for, not the word that asked."""
    anew, _ = made
    _, _, out = attended(made, OBJECTS[3].name)
    logits = out @ anew["head"]
    tokenizer = embedded.tokenizer()

    def of(word: str) -> float:
        return float(logits[tokenizer.encode(word, add_bos=False)[0]])

    assert of("bottom") > of("top")
    assert of("left") > max(of("middle"), of("right"))
    assert of("bottom") > of(OBJECTS[3].name)


def test_the_other_heads_stay(made: tuple) -> None:
    _, kernels = made
    columns = slice(3 * CONFIG.head_dim, None)
    assert np.allclose(kernels["query"][:, columns], kernels["kept"][:, columns])


@pytest.mark.parametrize("change", [{"num_kv_heads": 2}, {"rope_theta": 1e4}])
def test_a_decoder_without_room_is_refused(change: dict[str, float]) -> None:
    with pytest.raises(InputError, match="Raise num_kv_heads, head_dim or rope_theta"):
        looked_up(dataclasses.replace(CONFIG, **change))
