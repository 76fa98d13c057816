"""The demo's scenes: the same for the same seed, splits that share nothing, pictures that show what is said."""

import functools

import numpy as np
import pytest

from dynllava_jax.demo.catalogue import BACKGROUNDS, COLOURS, MATERIAL, OBJECTS, PLACES
from dynllava_jax.demo.dataset import Mixture, Sample, sample
from dynllava_jax.demo.render import SIDE, box, patch_shares, render
from dynllava_jax.demo.scenes import SPLITS, Split, allowed
from dynllava_jax.errors import InputError


@functools.cache  # not while tests are collected, which every worker does
def scenes() -> list[Sample]:
    return [sample(index, split) for split in SPLITS for index in range(300)]


def combinations(split: Split, count: int = 1500) -> set[tuple[str, str, int]]:
    scenes = [sample(index, split).scene for index in range(count)]
    return {(one.thing.name, scene.background.name, one.place) for scene in scenes for one in scene.placements}


def test_there_is_enough_of_everything() -> None:
    assert len(OBJECTS) >= 40
    assert len(BACKGROUNDS) >= 10
    assert len({thing.name for thing in OBJECTS}) == len({thing.code for thing in OBJECTS}) == len(OBJECTS)
    assert sum(thing.dyed for thing in OBJECTS) >= 5
    assert {one.thing for each in scenes() for one in each.scene.placements} == set(OBJECTS)


def test_every_picture_is_there_and_has_a_licence() -> None:
    objects = {path.stem for path in (MATERIAL / "objects").iterdir()}
    backgrounds = {path.stem for path in (MATERIAL / "backgrounds").iterdir()}
    assert objects == {thing.name for thing in OBJECTS}
    assert backgrounds == {background.name for background in BACKGROUNDS}
    text = (MATERIAL / "LICENCES.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    licences = {file: licence for file, _, _, licence in rows[1:]}
    assert set(licences) == {f"{name}.jpg" for name in backgrounds}
    assert all(any(word in licence for word in ("CC0", "CC-BY-", "public domain")) for licence in licences.values())
    assert not any("SA" in licence for licence in licences.values())
    assert "objects/*.webp" in text
    assert "MIT" in text
    assert sum(path.stat().st_size for path in MATERIAL.rglob("*.*")) < 1.5e6


def test_a_sample_is_a_function_of_seed_split_and_number() -> None:
    for split in SPLITS:
        assert sample(7, split) == sample(7, split)
        assert render(sample(7, split).scene)[0].tobytes() == render(sample(7, split).scene)[0].tobytes()
    assert len({repr(sample(number, "train", seed=seed).scene) for number in range(5) for seed in range(5)}) == 25


def test_no_combination_of_the_test_split_is_in_training() -> None:
    assert not (allowed("train") & allowed("test")).any()
    assert (allowed("train") | allowed("test")).all()
    train, test = combinations("train"), combinations("test")
    assert not train & test
    # Both are well filled: every object is seen on every background, and everywhere.
    assert len(test) > 800
    assert {(name, place) for name, _, place in train} == {(t.name, p) for t in OBJECTS for p in range(len(PLACES))}


@pytest.mark.parametrize("index", range(0, 300 * len(SPLITS), 40))
def test_the_mask_and_the_boxes_are_where_the_things_are(index: int) -> None:
    one = scenes()[index]
    picture, mask = render(one.scene)
    assert picture.size == (SIDE, SIDE)
    assert mask.shape == (SIDE, SIDE)
    assert set(np.unique(mask)) == set(range(len(one.scene.placements) + 1))
    for number, placement in enumerate(one.scene.placements, 1):
        y, x = np.nonzero(mask == number)
        left, top, right, bottom = box(placement)
        assert left <= x.min() < x.max() < right
        assert top <= y.min() < y.max() < bottom
        # In the middle of its cell's third and half lies the middle of the thing.
        assert (left + right) // 2 * 3 // SIDE == placement.column
        assert (top + bottom) // 2 * 2 // SIDE == placement.row
        assert (max(right - left, bottom - top) > 80) == (placement.size == "large")
    shares = patch_shares(mask)
    assert shares.shape == (len(one.scene.placements) + 1, 576)
    assert (shares.sum(0) == 14 * 14).all()
    assert shares[1:].sum() == (mask > 0).sum()


def test_dyed_things_have_their_colour() -> None:
    wanted = {"red": (1, 0, 0), "yellow": (1, 1, 0), "green": (0, 1, 0), "blue": (0, 0.4, 1), "purple": (0.7, 0, 1)}
    seen = set()
    for each in scenes():
        picture, mask = render(each.scene)
        pixels = np.asarray(picture, float)
        for number, placement in enumerate(each.scene.placements, 1):
            if placement.colour is None:
                continue
            mine = pixels[mask == number]
            strong = mine[np.ptp(mine, axis=1) > 60]
            hue = strong.mean(0) - strong.mean(0).min()
            nearest = min(COLOURS, key=lambda c: float(np.linalg.norm(hue / hue.max() - np.array(wanted[c]))))
            assert nearest == placement.colour, each.id
            seen.add((placement.thing.name, placement.colour))
    assert len(seen) > 30


def test_mixture_is_checked() -> None:
    for turns, descriptions, name in ((0, 0.3, "turns"), (10, 0.3, "turns"), (8, 1.5, "descriptions")):
        with pytest.raises(InputError, match=name):
            Mixture(turns, descriptions)
