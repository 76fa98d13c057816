"""Drawn is what was decided: dropped patches pale, scores in their order, dropped tokens grey."""

import numpy as np

from dynllava_jax.inference.explain import Explanation, Piece, SeenImage
from dynllava_jax.inference.request import Answer
from dynllava_jax.viz.overlay import draw_kept, draw_patches, draw_scores


def explanation(pieces: list[Piece], images: int = 1) -> Explanation:
    seen = SeenImage(np.full((28, 28, 3), (200, 30, 30), np.uint8), np.eye(2, dtype=bool), np.arange(4.0).reshape(2, 2))
    answer = Answer("", [], [], [], {}, {})
    return Explanation(answer, (seen,) * images, tuple(pieces))


def darkest(text: str, keep: int | None) -> int:
    """Of the last line, which is the answer's."""
    return int(np.asarray(draw_kept(explanation([Piece(text, keep)], images=0), "What?"))[-36:].min())


def test_dropped_patches_are_pale_and_grey() -> None:
    image = explanation([]).images[0]
    drawn = draw_patches(image.pixels, image.kept)
    assert (drawn[:14, :14] == (200, 30, 30)).all()
    assert (drawn[14:, 14:] == (200, 30, 30)).all()
    assert len(np.unique(drawn[:14, 14:])) == 1
    assert drawn[0, 14, 0] > 200


def test_scores_are_drawn_by_rank_and_gaps_pale() -> None:
    pixels = np.zeros((4, 4, 3), np.uint8)
    scores = np.array([[0.0, 1.0], [1e9, np.nan]])
    drawn = draw_scores(pixels, scores)
    assert drawn[0, 0, 2] > drawn[0, 0, 0] - 20
    assert drawn[2, 0, 0] > 2 * drawn[2, 0, 2]
    np.testing.assert_array_equal(drawn, draw_scores(pixels, np.array([[0.0, 0.5], [0.6, np.nan]])))
    assert (drawn[2:, 2:] > 180).all()
    assert len({tuple(drawn[y, x].tolist()) for y, x in ((0, 0), (0, 2), (2, 0))}) == 3


def test_dropped_tokens_are_grey() -> None:
    assert darkest("a cat", 1) == darkest("a cat", None) < 100
    assert darkest("a cat", 0) >= 185
    assert darkest("", 1) == 255


def test_long_answers_take_more_lines_and_lose_nothing() -> None:
    short = draw_kept(explanation([Piece("cat", 1)]), "What?")
    long = draw_kept(explanation([Piece(" cat", 1)] * 300), "What?")
    assert long.width == short.width
    assert long.height > short.height
    broken = draw_kept(explanation([Piece("cat\ndog", 1)]), "What?")
    assert broken.height > short.height
    assert draw_kept(explanation([Piece("no picture", 1)], images=0), "What?").width == short.width


def test_words_wider_than_a_line_are_broken_and_lose_nothing() -> None:
    """Addresses, and whatever is written without blanks."""
    line = draw_kept(explanation([Piece("wide", 1)], images=0), "What?")
    sheets = [np.asarray(draw_kept(explanation([Piece("word " + "m" * n, 0)], images=0), "What?")) for n in (400, 401)]
    assert len(sheets[0]) > line.height + 100
    assert len(sheets[0]) == len(sheets[1])
    ink = [int((sheet < 255).sum()) for sheet in sheets]
    assert ink[1] > ink[0]  # one letter more is one letter more to see


def test_letters_beyond_ascii_are_letters() -> None:
    """What a font lacks it draws as one and the same box."""
    sheets = [np.asarray(draw_kept(explanation([Piece(text, 1)], images=0), "What?")) for text in ("ü", "ж", "σ")]
    assert len({sheet.tobytes() for sheet in sheets}) == 3
