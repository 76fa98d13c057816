"""Static selection against plain numpy: what a loop over Python lists would have kept.

B batch, S sequence, S2 deep sequence, M images, N image tokens, K kept of N, D features.
"""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dynllava_jax.sparsify.select import compact, image_keep, rank_of, slots_of, take, top_k

B, S, M, N = 3, 12, 2, 5

MASKS = arrays.arrays(bool, (B, S))
# Few different values, so that ties are the rule.
SCORES = arrays.arrays(np.float32, (B, M, N), elements=st.sampled_from([-np.inf, -2.0, -0.0, 0.0, 1.5, 1e30]))

few = settings(max_examples=40, deadline=None)


@few
@given(SCORES, st.integers(1, N))
def test_of_equal_scores_the_lower_index_stays(scores: np.ndarray, count: int) -> None:
    best = np.argsort(-scores, axis=-1, kind="stable")[..., :count]
    np.testing.assert_array_equal(top_k(jnp.asarray(scores), count), np.sort(best, axis=-1))


def test_nan_is_below_every_number() -> None:
    nan = np.float32(np.nan)
    scores = jnp.asarray([[[nan, -np.inf, -nan, 2.0]], [[nan, nan, nan, nan]]])
    assert top_k(scores, 2).tolist() == [[[1, 3]], [[0, 1]]]


def test_scores_in_half_precision_are_ranked_too() -> None:
    scores = jnp.asarray([[[1.0, 3.0, 2.0, 3.0]]], jnp.bfloat16)
    assert top_k(scores, 3).tolist() == [[[1, 2, 3]]]


@few
@given(MASKS, st.integers(0, S + 3))
def test_slots_are_the_first_true_entries(mask: np.ndarray, count: int) -> None:
    found = [np.flatnonzero(row)[:count].tolist() for row in mask]
    wanted = [row + [S] * (count - len(row)) for row in found]
    np.testing.assert_array_equal(slots_of(jnp.asarray(mask), count), np.array(wanted).reshape(B, count))


@few
@given(MASKS)
def test_rank_counts_the_true_entries_before(mask: np.ndarray) -> None:
    wanted = [[int(row[:at].sum()) for at in range(S)] for row in mask]
    np.testing.assert_array_equal(rank_of(jnp.asarray(mask)), wanted)


@few
@given(st.data())
def test_kept_image_tokens_are_those_named(data: st.DataObject) -> None:
    """Images stand anywhere, also side by side, as many as there are; the rest of the sequence is text and stays."""
    kept_count = data.draw(st.sampled_from([1, 3, N]))
    is_image, wanted, index = [], [], []
    for _ in range(B):
        present = data.draw(st.integers(0, M))
        gaps = data.draw(st.lists(st.integers(0, 2), min_size=M + 1, max_size=M + 1))
        chosen = [sorted(data.draw(st.permutations(range(N)))[:kept_count]) for _ in range(M)]
        row, keep = [False] * gaps[0], [True] * gaps[0]
        for image in range(present):
            row += [True] * N + [False] * gaps[image + 1]
            keep += [token in chosen[image] for token in range(N)] + [True] * gaps[image + 1]
        size = M * N + 2 * (M + 1)
        is_image.append(row + [False] * (size - len(row)))
        wanted.append(keep + [True] * (size - len(keep)))
        index.append(chosen)
    np.testing.assert_array_equal(image_keep(jnp.asarray(is_image), jnp.asarray(index), N), wanted)


@few
@given(MASKS)
def test_compaction_is_a_stable_left_pack(keep: np.ndarray) -> None:
    length = next(size for size in (4, 7, S) if size >= keep.sum(axis=-1).max())
    order, lengths = compact(jnp.asarray(keep), length)
    assert order.shape == (B, length)
    for row, mask in enumerate(keep):
        kept = np.flatnonzero(mask)
        assert lengths[row] == len(kept)
        np.testing.assert_array_equal(order[row, : len(kept)], kept)
        assert np.all((np.asarray(order[row]) >= 0) & (np.asarray(order[row]) < S))


def test_taking_follows_the_order() -> None:
    x = np.random.default_rng(0).standard_normal((2, 4, 3)).astype(np.float32)
    order = np.array([[3, 0, 1], [2, 2, 0]])
    wanted = np.stack([x[0][order[0]], x[1][order[1]]])
    np.testing.assert_array_equal(take(jnp.asarray(x), jnp.asarray(order)), wanted)
