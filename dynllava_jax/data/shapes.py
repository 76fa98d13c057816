"""Which few shapes (S, M) a run compiles, so that its batches carry little padding.

Axis legend: N batches, S sequence, M images per row, C lengths to choose from.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from dynllava_jax.config.data import IMAGE_SLOTS
from dynllava_jax.errors import InputError

_SLOT_COST = 16
"""An image slot in tokens of the decoder: the forward pass alone of 0.3 B parameters on 577 patches, beside 6.7 B."""


class Shape(NamedTuple):
    """S and M of a batch."""

    length: int
    images: int

    @property
    def cost(self) -> int:
        """Of one row, in tokens."""
        return self.length + _SLOT_COST * self.images


def candidate_lengths(given: Sequence[int], longest: int) -> Int[np.ndarray, " C"]:
    """The lengths to choose from: those given, else multiples of 64 or, beyond 1024 tokens, of 128.

    Raises:
        InputError: the longest sample does not fit the largest given length.
    """
    if given:
        if longest > given[-1]:
            raise InputError(
                f"data.lengths ends at {given[-1]} but the longest sample has {longest} tokens; add a length or lower "
                "data.max_length."
            )
        return np.asarray(given, np.int64)
    unit = 128 if longest > 1024 else 64
    return np.arange(1, -(-longest // unit) + 1, dtype=np.int64) * unit


def choose_shapes(
    longest: Int[np.ndarray, " N"], images: Int[np.ndarray, " N"], candidates: Int[np.ndarray, " C"], max_shapes: int
) -> tuple[Shape, ...]:
    """At most `max_shapes` shapes that hold every batch at the least cost.

    For each set of slot numbers that includes the largest needed, every batch goes to the smallest that holds its
    images, and the best lengths there follow by dynamic programming over the batches' maxima. Exact but for batches
    that would rather take a shape with more slots and fewer tokens.

    Args:
        longest: tokens of each batch's longest sample, at most `candidates[-1]`.
        images: the most images of a sample, of each batch.
        candidates: ascending lengths to choose from.
        max_shapes: 1 or more.
    """
    needed = [slots for slots in IMAGE_SLOTS if slots <= slots_for(int(images.max()))]
    need = np.searchsorted(candidates, longest)
    best: tuple[int, tuple[Shape, ...]] | None = None
    for size in range(min(len(needed), max_shapes)):
        for fewer in combinations(needed[:-1], size):
            slots = np.asarray((*fewer, needed[-1]))
            group = np.searchsorted(slots, images)
            plans = [
                _best_lengths(np.bincount(need[group == number], minlength=len(candidates)), candidates, max_shapes)
                for number in range(len(slots))
            ]
            found = _share(plans, slots.tolist(), np.bincount(group, minlength=len(slots)).tolist(), max_shapes)
            if found is not None and (best is None or found[0] < best[0]):
                best = found
    assert best is not None  # a single shape, the largest, always holds everything
    return best[1]


def assign_shapes(
    longest: Int[np.ndarray, " N"], images: Int[np.ndarray, " N"], shapes: Sequence[Shape]
) -> Int[np.ndarray, " N"]:
    """The index of the cheapest shape that holds each batch."""
    chosen = np.full(longest.shape, -1, np.int64)
    for index in sorted(range(len(shapes)), key=lambda index: -shapes[index].cost):
        chosen[(longest <= shapes[index].length) & (images <= shapes[index].images)] = index
    return chosen


def slots_for(images: int) -> int:
    """The smallest M that holds so many images.

    Raises:
        InputError: no M does.
    """
    for slots in IMAGE_SLOTS:
        if slots >= images:
            return slots
    raise InputError(f"A sample has {images} images; a batch has room for {IMAGE_SLOTS[-1]}.")


def _best_lengths(
    counts: Int[np.ndarray, " C"], candidates: Int[np.ndarray, " C"], most: int
) -> list[tuple[int, list[int]]]:
    """With 1, 2, … `most` lengths: the least sum of padded batch lengths, and the lengths that give it.

    No more lengths than there are different ones among the batches; only (0, []) when there is no batch.
    """
    used = np.flatnonzero(counts)
    if not used.size:
        return [(0, [])]
    lengths, before = candidates[used], np.concatenate([[0], np.cumsum(counts[used])])
    # cost[i, j]: the batches of lengths i … j-1, all padded to the longest of them.
    count = before[None, :] - before[:, None]
    never = np.iinfo(np.int64).max // 4
    cost = np.where(count > 0, count * np.concatenate([[0], lengths])[None, :], never)
    least, cuts = cost[0], []
    plans = [(int(least[-1]), [int(lengths[-1])])]
    for _ in range(min(most, used.size) - 1):
        total = least[:, None] + cost
        cuts.append(total.argmin(0))
        least = np.minimum(total.min(0), never)
        ends = [used.size]
        for cut in reversed(cuts):
            ends.append(int(cut[ends[-1]]))
        plans.append((int(least[-1]), [int(lengths[end - 1]) for end in reversed(ends)]))
    return plans


def _share(
    plans: list[list[tuple[int, list[int]]]], slots: list[int], batches: list[int], most: int
) -> tuple[int, tuple[Shape, ...]] | None:
    """Divides `most` shapes among the slot numbers; None when not each that is used can have one."""
    states: dict[int, tuple[int, tuple[Shape, ...]]] = {0: (0, ())}
    for plan, images, count in zip(plans, slots, batches, strict=True):
        grown: dict[int, tuple[int, tuple[Shape, ...]]] = {}
        for taken, (cost, shapes) in states.items():
            for tokens, lengths in plan:
                total = cost + tokens + _SLOT_COST * images * count
                key = taken + len(lengths)
                if key <= most and (key not in grown or total < grown[key][0]):
                    grown[key] = (total, shapes + tuple(Shape(length, images) for length in lengths))
        states = grown
    return min(states.values(), key=lambda state: (state[0], len(state[1])), default=None)
