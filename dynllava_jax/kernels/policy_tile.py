"""The formula of policy attention on one tile of scores, the same in every kernel and in both orientations.

Arrays broadcast against each other: positions and numbers of the queries along one axis, those of the keys along the
other. Scores stay plain products, so that only differences of them are scaled and rounded. See `policy_join` for the
formula and for `policy`.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

LOWEST = -1e30
"""Score of a key that is not seen: finite, so that differences are numbers, and below every real one."""

Tile = Any
"""An array inside a kernel, of any rank."""


class Sight(NamedTuple):
    """Who sees whom.

    Attributes:
        visible: which keys a query sees; None where that need not be asked.
        weight: factor of each exponential.
        own: where key and query are one token; None in a tile that lies below the diagonal.
    """

    visible: Tile
    weight: Tile
    own: Tile | None


def sight(policy: Tile, queries: Tile, keys: Tile, *, hide: bool, diagonal: bool) -> Sight:
    """What of a tile counts.

    Args:
        policy: of the keys; negative for padding.
        queries, keys: positions.
        hide: dropped keys are seen by nobody else, rather than with weight 0.
        diagonal: the tile touches the diagonal; otherwise all its keys stand before all its queries.
    """
    visible = policy > 0 if hide else policy >= 0
    weight = jnp.float32(1.0) if hide else jnp.maximum(policy, 0.0)
    if not diagonal:
        return Sight(visible, weight, None)
    own, before = queries == keys, queries > keys
    visible = (before & visible) | (own & (policy >= 0))
    return Sight(visible, weight if hide else jnp.where(own, 1.0, weight), own)


class Rows(NamedTuple):
    """What the backward pass knows of each query, from the forward pass and of the cotangent.

    Attributes:
        highest: largest score that it sees.
        inverse: 1 / denominator.
        argmax: position of the first key that has the largest score.
        delta: product of its output and its output's cotangent.
        through: gradient of the largest score.
    """

    highest: Tile
    inverse: Tile
    argmax: Tile
    delta: Tile
    through: Tile


class Slopes(NamedTuple):
    """What the backward pass makes of a tile.

    Attributes:
        probability: weight of each value in the output.
        score: gradient of each score, in natural units.
        policy: gradient that each key's policy receives.
    """

    probability: Tile
    score: Tile
    policy: Tile


def slopes(shares: Tile, products: Tile, seen: Sight, rows: Rows, keys: Tile, *, hide: bool) -> Slopes:
    """What the backward pass makes of a tile.

    Args:
        shares: exponentials of the scores by their row's denominator, whether they are seen or not.
        products: of cotangents and values.
        seen: see `sight`.
        rows: of the queries; without `argmax` and `through` where what they say is added elsewhere.
        keys: their positions.
        hide: see `sight`.
    """
    if seen.visible is not None:
        shares = jnp.where(seen.visible, shares, 0.0)
    of_policy = shares * (products - rows.delta)
    of_score = of_policy * seen.weight
    if not hide and rows.argmax is not None:
        # By index, not by value: the scores of this pass come from tiles of other shapes, and may be rounded otherwise.
        of_score = of_score + jnp.where(keys == rows.argmax, rows.through, 0.0)
    if seen.own is not None:
        of_policy = jnp.where(seen.own, 0.0, of_policy)
    return Slopes(shares * seen.weight, of_score, of_policy)


def base2_scale(head_dim: int) -> float:
    """What differences of scores are multiplied by to be base-2 logarithms."""
    return math.log2(math.e) / math.sqrt(head_dim)
