"""What an explanation tells is what the answer was made of."""

import dataclasses

import numpy as np
import pytest

from dynllava_jax.config.vision import TokenPackerProjector
from dynllava_jax.inference.assistant import Assistant
from dynllava_jax.inference.buckets import Buckets
from dynllava_jax.inference.explain import Explanation, _on_grid
from dynllava_jax.testing import synthetic_image, tiny_assistant, tiny_config

QUESTION = "What is in the picture?"
BUCKETS = Buckets(rows=(1,), images=(2,), length=(128,), answer=(16,), instruction=(32,), segment=16)


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return tiny_assistant(buckets=BUCKETS)


def explained(assistant: Assistant, images: int = 1, tokens: int = 12, dense: bool = False) -> Explanation:
    pictures = [synthetic_image(number) for number in range(images)]
    return assistant.explain(pictures, QUESTION, max_new_tokens=tokens, dense=dense)


def test_the_highest_scores_are_kept(assistant: Assistant) -> None:
    found = explained(assistant, images=2)
    assert (
        found.answer.text
        == assistant.generate([synthetic_image(0), synthetic_image(1)], QUESTION, max_new_tokens=12).text
    )
    for image, kept in zip(found.images, found.answer.kept_image_tokens, strict=True):
        assert image.scores is not None
        assert image.scores.shape == image.kept.shape == (4, 4)
        assert np.flatnonzero(image.kept).tolist() == kept
        assert image.scores[image.kept].min() >= image.scores[~image.kept].max()
    first, second = (np.asarray(image.scores) for image in found.images)
    assert not np.array_equal(first, second)


def test_pieces_join_to_the_answer_and_carry_its_decisions(assistant: Assistant) -> None:
    found = explained(assistant)
    assert "".join(piece.text for piece in found.pieces) == found.answer.text
    assert [piece.keep for piece in found.pieces] == found.answer.kept_output_tokens
    kept, judged = found.text_kept
    assert judged == len(found.pieces) - 1
    # Prompt and kept tokens: what the deep cache holds beyond an answer of one token.
    alone = assistant.generate(synthetic_image(0), QUESTION, max_new_tokens=1).cache_tokens["deep"]
    assert found.answer.cache_tokens["deep"] - alone == kept


def test_the_picture_is_what_the_tower_saw(assistant: Assistant) -> None:
    prep = assistant.config.image_prep
    (image,) = assistant.explain(synthetic_image(0, 64, 64), QUESTION, max_new_tokens=1).images
    assert image.pixels.shape == (prep.crop, prep.crop, 3)
    whole = synthetic_image(0, 64, 64).resize((prep.crop, prep.crop))
    assert np.abs(image.pixels.astype(float) - np.asarray(whole)).mean() < 4


def test_nothing_is_ranked_when_nothing_is_dropped(assistant: Assistant) -> None:
    found = explained(assistant, dense=True)
    assert found.images[0].scores is None
    assert found.images[0].kept.all()
    assert {piece.keep for piece in found.pieces[:-1]} == {1}


def test_cells_of_earlier_selections_have_no_score() -> None:
    config = tiny_config()
    sparsity = dataclasses.replace(config.sparsity, tower_selector="stride", tower_keep_rate=0.5)
    of = tiny_assistant(dataclasses.replace(config, sparsity=sparsity), buckets=BUCKETS)
    (image,) = explained(of, tokens=1).images
    assert image.scores is not None
    assert np.isfinite(image.scores).sum() == 8
    assert np.isfinite(image.scores[image.kept]).all()


def test_grids_of_other_towers_and_projectors() -> None:
    packer = TokenPackerProjector(scale=2, width=32, num_heads=2, levels=(1, 2))
    packed = dataclasses.replace(tiny_config(), projector=packer)
    assert _on_grid(packed, np.arange(4), np.arange(4.0, dtype=np.float32)).tolist() == [[0, 1], [2, 3]]
    # CLS's feature is the first of all and stands for no patch.
    vision = dataclasses.replace(tiny_config().vision, select_feature="cls_patch")
    with_cls = dataclasses.replace(tiny_config(), vision=vision)
    grid = _on_grid(with_cls, np.array([0, 1, 16]), np.array([5, 6, 7], np.float32))
    assert grid.shape == (4, 4)
    assert (grid[0, 0], grid[3, 3], np.isnan(grid).sum()) == (6, 7, 14)
