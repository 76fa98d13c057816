"""Kept patches against the mask of a scene."""

import numpy as np
import pytest

from dynllava_jax.demo.dataset import Mixture, sample
from dynllava_jax.demo.render import patch_shares, render
from dynllava_jax.evaluation.kept import as_grid, kept_on_things

SCENE = sample(3, "test", Mixture(1, 1.0)).scene


def test_against_patch_shares() -> None:
    shares = patch_shares(render(SCENE)[1])
    kept = np.argsort(-shares[1:].sum(0), kind="stable")[:115]
    found = kept_on_things(as_grid(kept.tolist(), 24), SCENE)
    on = shares[1:].sum(0)
    assert found.precision == pytest.approx(on[kept].sum() / (115 * 196))
    assert found.recall == pytest.approx(on[kept].sum() / on.sum())
    assert found.area == pytest.approx(on.sum() / 336**2)
    for (name, recall, area), placement, share in zip(found.by_thing, SCENE.placements, shares[1:], strict=True):
        assert name == placement.thing.name
        assert recall == pytest.approx(share[kept].sum() / share.sum())
        assert area == pytest.approx(share.sum() / 336**2)


def test_all_and_nothing() -> None:
    everything = kept_on_things(np.ones((24, 24), bool), SCENE)
    assert everything.recall == 1.0
    assert everything.precision == pytest.approx(everything.area)
    nothing = kept_on_things(np.zeros((24, 24), bool), SCENE)
    assert (nothing.precision, nothing.recall) == (0.0, 0.0)
