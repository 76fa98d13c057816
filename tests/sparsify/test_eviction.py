"""H2O and StreamingLLM against their published rules, written out as loops over one head's cache."""

import jax.numpy as jnp
import numpy as np
import pytest

from dynllava_jax.errors import InputError
from dynllava_jax.sparsify.eviction import Eviction, HeavyHitters, SlidingWindow

PROMPT, ANSWERS, GROUPS, RATIO = 5, (11, 6), 2, 3
LENGTH, TOKENS = 18, 11


@pytest.fixture(scope="module")
def scores() -> np.ndarray:
    """Of two samples, the second one shorter and padded; key 2 of each prompt was dropped by another selector."""
    shape = (len(ANSWERS), GROUPS, RATIO, TOKENS, LENGTH)
    return 2 * np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def masks() -> tuple[np.ndarray, np.ndarray]:
    place = np.arange(LENGTH)
    answer = np.stack([(place >= PROMPT) & (place < PROMPT + count) for count in ANSWERS])
    causal = place <= PROMPT + np.arange(TOKENS)[:, None]
    real = place < PROMPT + np.array(ANSWERS)[:, None]
    return (causal & real[:, None] & (place != 2)), answer


def found(policy: Eviction, scores: np.ndarray) -> np.ndarray:
    visible, answer = masks()
    return np.asarray(policy(jnp.asarray(scores), jnp.asarray(visible), jnp.asarray(answer)))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def heavy_hitters(scores: np.ndarray, answers: int, budget: int) -> list[list[int]]:
    """Algorithm 1 of H2O for one head with the answer's keys as cache: what each token finds of the answer."""
    prompt = [key for key in range(PROMPT) if key != 2]
    cache: list[int] = []
    total, finds = dict.fromkeys(range(answers), 0.0), []
    for token in range(answers):
        cache.append(token)
        finds.append(list(cache))
        keys = prompt + [PROMPT + key for key in cache]
        weights = softmax(scores[:, token, keys])[:, len(prompt) :].sum(0)
        for key, weight in zip(cache, weights, strict=True):
            total[key] += weight
        if len(cache) > budget:
            newest = set(range(token - budget // 2 + 1, token + 1))
            cache.remove(min((key for key in cache if key not in newest), key=total.__getitem__))
    return finds


@pytest.mark.parametrize("rate", [0.3, 0.5, 1.0])
def test_h2o_is_its_algorithm(scores: np.ndarray, rate: float) -> None:
    seen = found(HeavyHitters(rate), scores)
    for sample, answers in enumerate(ANSWERS):
        for group in range(GROUPS):
            wanted = heavy_hitters(scores[sample, group], answers, int(rate * answers))
            for token, keys in enumerate(wanted):
                row = np.flatnonzero(seen[sample, group, token])
                assert row.tolist() == [0, 1, 3, 4, *(PROMPT + key for key in keys)], (sample, group, token)


def test_heads_decide_for_themselves(scores: np.ndarray) -> None:
    seen = found(HeavyHitters(0.5), scores)
    assert (seen[:, 0] != seen[:, 1]).any()


@pytest.mark.parametrize("rate", [0.3, 0.5, 1.0])
def test_the_window_holds_the_newest_keys(scores: np.ndarray, rate: float) -> None:
    seen = found(SlidingWindow(rate), scores)
    for sample, answers in enumerate(ANSWERS):
        window = int(rate * answers)
        for token in range(answers):
            keys = [key for key in range(answers) if token - window < key <= token]
            for group in range(GROUPS):
                row = np.flatnonzero(seen[sample, group, token])
                assert row.tolist() == [0, 1, 3, 4, *(PROMPT + key for key in keys)]


@pytest.mark.parametrize("policy", [HeavyHitters, SlidingWindow])
def test_budgets(policy: type[HeavyHitters | SlidingWindow], scores: np.ndarray) -> None:
    assert isinstance(policy(), Eviction)
    assert hash(policy(0.5)) == hash(policy())
    last = found(policy(0.5), scores)[0, 0, ANSWERS[0] - 1, PROMPT:]
    assert last.sum() in (int(0.5 * ANSWERS[0]), int(0.5 * ANSWERS[0]) + 1)
    with pytest.raises(InputError, match="rate"):
        policy(0.0)
