"""Recordings in half precision: a choice between nearly equal scores may fall otherwise, and then does not count.

Nearly equal means closer than twice what the dtype may change the scores by. What follows from such a choice is masked
(a later step, a row that only one side has); any other difference of choice stays what it is, a failure.

B batch, T steps or tokens, P image tokens.
"""

import numpy as np
from jaxtyping import Bool, Shaped

from dynllava_jax.verify.cases import Case
from dynllava_jax.verify.computed import Computed
from dynllava_jax.verify.tolerance import tolerance

_FROM_THE_NEXT_STEP = ("logits", "hidden")
_FROM_THE_STEP = ("text_decision", "cache_len", "cache_true_len")


def excuse(case: Case, computed: Computed, dtype: str) -> None:
    """Masks in `computed` what rounding decided otherwise, and what came of it."""
    _images(case, computed, dtype)
    _decisions(case, computed, dtype)
    _next_tokens(case, computed, dtype)


def _nearly(case: Case, name: str, dtype: str) -> float:
    return 2 * tolerance(case.name, name, case.outputs[name], dtype).limit


def _images(case: Case, computed: Computed, dtype: str) -> None:
    """Case 05: other image tokens kept; rows are matched by their position."""
    name = "image_keep_index"
    if name not in case.outputs or name not in computed.values or "image_keep_score" not in case.outputs:
        return
    ours, theirs = computed.values[name], case.outputs[name]
    score = case.outputs["image_keep_score"][0]
    apart = np.setxor1d(ours, theirs)
    behind = np.abs(score[apart] - score[theirs[0]].min())
    if not apart.size or np.any(behind > _nearly(case, "image_keep_score", dtype)):
        return
    computed.masked[name] = np.ones(ours.shape, bool)
    positions = case.outputs["position_ids_after"][0]
    _, left, right = np.intersect1d(computed.values["position_ids_after"][0], positions, return_indices=True)
    for array, reference in case.outputs.items():
        axis = 2 if array.startswith(("key_", "value_")) else 1
        if array in computed.values and reference.ndim > axis and reference.shape[axis] == len(positions):
            _match(computed, array, axis, left, right)


def _match(computed: Computed, name: str, axis: int, left: np.ndarray, right: np.ndarray) -> None:
    """Puts our rows `left` where theirs, `right`, lie; rows that we do not have are masked."""
    ours = np.moveaxis(computed.values[name], axis, 0)
    matched, absent = np.zeros_like(ours), np.ones(ours.shape[: axis + 1], bool)
    matched[right], absent[right] = ours[left], False
    computed.values[name] = np.moveaxis(matched, 0, axis)
    computed.masked[name] = np.moveaxis(absent, 0, axis)


def _decisions(case: Case, computed: Computed, dtype: str) -> None:
    """Case 06, one sample: another answer token stored."""
    name = "b1.text_decision"
    if name not in case.outputs or name not in computed.values:
        return
    scores = case.outputs["b1.text_logits"]
    near = np.abs(scores[..., 0] - scores[..., 1]) <= _nearly(case, "b1.text_logits", dtype)
    first = _first_other(computed.values[name], case.outputs[name], near)
    if first is None:
        return
    for part in (*_FROM_THE_STEP, *_FROM_THE_NEXT_STEP):
        if (array := f"b1.{part}") in computed.values:
            steps_first = part.startswith("cache")
            begin = first + (part in _FROM_THE_NEXT_STEP)
            computed.masked[array] = _after(computed.values[array], 0 if steps_first else 1, begin)


def _next_tokens(case: Case, computed: Computed, dtype: str) -> None:
    """Case 06: another token generated."""
    if "gen.greedy_ids" not in case.outputs or "gen.greedy_ids" not in computed.values:
        return
    best = np.sort(case.outputs["gen.logits"], axis=-1)[..., -2:]
    near = best[..., 1] - best[..., 0] <= _nearly(case, "gen.logits", dtype)
    first = _first_other(computed.values["gen.greedy_ids"], case.outputs["gen.greedy_ids"], near)
    if first is not None:
        computed.masked["gen.greedy_ids"] = _after(computed.values["gen.greedy_ids"], 1, first)
        computed.masked["gen.logits"] = _after(computed.values["gen.logits"], 1, first + 1)


def _first_other(
    ours: Shaped[np.ndarray, "1 T"], theirs: Shaped[np.ndarray, "1 T"], near: Bool[np.ndarray, "1 T"]
) -> int | None:
    """The step at which the two part, if they do and it is a near thing."""
    if ours.shape != theirs.shape or not (other := np.flatnonzero(ours[0] != theirs[0])).size:
        return None
    return int(other[0]) if near[0, other[0]] else None


def _after(value: np.ndarray, axis: int, first: int) -> np.ndarray:
    """A mask over the leading axes of `value`, True from `first` on along the last of them."""
    masked = np.zeros(value.shape[: axis + 1], bool)
    masked[..., first:] = True
    return masked
