"""Keep policies against plain numpy.

B batch, S sequence.
"""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from dynllava_jax.sparsify.policy import KeepPolicy, OfficialTopN, Threshold

B, S = 3, 7

LOGITS = arrays.arrays(np.float32, (B, S, 2), elements=st.sampled_from([-3.0, -1.0, 0.0, 0.5, 2.0]))
CANDIDATES = arrays.arrays(bool, (B, S))

few = settings(max_examples=40, deadline=None)


def apply(policy: KeepPolicy, logits: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    return np.asarray(policy(jnp.asarray(logits), jnp.asarray(candidates)))


@few
@given(LOGITS, CANDIDATES)
def test_threshold_judges_each_token_by_itself(logits: np.ndarray, candidates: np.ndarray) -> None:
    kept = apply(Threshold(), logits, candidates)
    np.testing.assert_array_equal(kept, candidates & (logits[..., 0] > logits[..., 1]))
    for row in range(B):
        one = slice(row, row + 1)
        np.testing.assert_array_equal(apply(Threshold(), logits[one], candidates[one]), kept[one])


@few
@given(LOGITS, CANDIDATES)
def test_official_top_n_follows_the_most_generous_sample(logits: np.ndarray, candidates: np.ndarray) -> None:
    count = int((candidates & (logits[..., 0] > logits[..., 1])).sum(axis=-1).max())
    wanted = np.zeros((B, S), bool)
    for row in range(B):
        ranked = sorted(np.flatnonzero(candidates[row]), key=lambda at: (-logits[row, at, 0], at))
        wanted[row, ranked[:count]] = True
    np.testing.assert_array_equal(apply(OfficialTopN(), logits, candidates), wanted)


def test_official_top_n_couples_samples_and_the_threshold_does_not() -> None:
    """The quirk that a recorded answer is compared by: a neighbour decides how many tokens stay."""
    generous, strict = np.array([[1.0, 0.0]] * 4), np.array([[0.1, 1.0], [0.3, 1.0], [0.2, 1.0], [0.4, 1.0]])
    logits = np.stack([generous, strict]).astype(np.float32)
    everything = np.ones((2, 4), bool)
    assert apply(Threshold(), logits, everything).sum(axis=-1).tolist() == [4, 0]
    assert apply(OfficialTopN(), logits, everything).sum(axis=-1).tolist() == [4, 4]
    assert apply(OfficialTopN(), logits[1:], everything[1:]).sum() == 0


def test_policies_are_static_arguments() -> None:
    for policy in (Threshold(), OfficialTopN()):
        assert isinstance(policy, KeepPolicy)
        assert hash(policy) == hash(type(policy)())
