"""What was kept for an answer, as one picture: patches, scores as a heat map, and the text with dropped tokens greyed.

Y, X pixels; G cells of the grid of image tokens along one side; *C what each cell holds.
"""

import contextlib
import dataclasses
import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8
from PIL import Image, ImageDraw, ImageFont

from dynllava_jax.inference.explain import Explanation, Piece, SeenImage

_PANEL, _GAP, _FONT = 336, 16, 16
_LINE = round(1.5 * _FONT)
_INK, _DROPPED = (20, 20, 20), (185, 185, 185)
_PALE = 0.25
"""How much of a dropped patch's picture is left in grey."""
_HEAT = np.array([(48, 18, 59), (57, 118, 225), (39, 189, 173), (164, 220, 60), (251, 180, 44), (200, 40, 10)], float)
"""Colours from the lowest score to the highest."""
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "Arial Unicode.ttf", "DejaVuSans.ttf")
_SHIPPED = "mpl-data/fonts/ttf/DejaVuSans.ttf"
_AnyFont: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont


def draw_kept(explanation: Explanation, question: str) -> Image.Image:
    """The picture as the tower saw it, the patches kept and the scores side by side; below them question and answer.

    A token of the answer is grey where the deep stack did not store it.
    """
    rows = [_image_row(image) for image in explanation.images]
    width = max((row.width for row in rows), default=3 * _PANEL + 2 * _GAP)
    rows.append(_text_block([Piece(question, 1)], "Question", width))
    kept, judged = explanation.text_kept
    title = f"Answer: {kept} of {judged} tokens stay in the deep layers' cache, grey ones do not"
    rows.append(_text_block(explanation.pieces, title, width))
    sheet = Image.new("RGB", (width + 2 * _GAP, sum(row.height + _GAP for row in rows) + _GAP), "white")
    y = _GAP
    for row in rows:
        sheet.paste(row, (_GAP, y))
        y += row.height + _GAP
    return sheet


def draw_patches(pixels: UInt8[np.ndarray, "Y X 3"], kept: Bool[np.ndarray, "G G"]) -> UInt8[np.ndarray, "Y X 3"]:
    """The picture with what was dropped pale and grey."""
    grey = 255 - _PALE * (255 - pixels.mean(axis=-1, keepdims=True))
    return np.where(spread(kept, *pixels.shape[:2])[..., None], pixels, np.rint(grey)).astype(np.uint8)


def draw_scores(pixels: UInt8[np.ndarray, "Y X 3"], scores: Float[np.ndarray, "G G"]) -> UInt8[np.ndarray, "Y X 3"]:
    """Scores over the grey picture, by rank: the order decides, and one outlier must not hide it."""
    known = np.isfinite(scores)
    ranks = np.full(scores.shape, np.nan)
    order = np.unique(scores[known], return_inverse=True)[1]
    ranks[known] = order / max(1, order.max(initial=0))
    stops = np.linspace(0, 1, len(_HEAT))
    heat = np.stack([np.interp(np.where(known, ranks, 0), stops, channel) for channel in _HEAT.T], axis=-1)
    heat[~known] = 255
    over = spread(heat, *pixels.shape[:2])
    return np.rint(0.75 * over + 0.25 * pixels.mean(axis=-1, keepdims=True)).astype(np.uint8)


def spread(grid: Shaped[np.ndarray, "G G *C"], height: int, width: int) -> Shaped[np.ndarray, "Y X *C"]:
    """For every pixel what the grid's cell under it holds."""
    y, x = (np.arange(size) * cells // size for size, cells in zip((height, width), grid.shape[:2], strict=True))
    return grid[np.ix_(y, x)]


def _image_row(image: SeenImage) -> Image.Image:
    kept, count = int(image.kept.sum()), image.kept.size
    panels = [("As the model sees it", image.pixels)]
    panels.append((f"Kept: {kept} of {count} image tokens", draw_patches(image.pixels, image.kept)))
    if image.scores is not None:
        panels.append(("Keep scores, low (blue) to high (red)", draw_scores(image.pixels, image.scores)))
    row = Image.new("RGB", (3 * _PANEL + 2 * _GAP, _PANEL + _LINE), "white")
    draw = ImageDraw.Draw(row)
    for place, (title, pixels) in enumerate(panels):
        x = place * (_PANEL + _GAP)
        draw.text((x, 0), title, _INK, _font())
        row.paste(Image.fromarray(pixels).resize((_PANEL, _PANEL), Image.Resampling.NEAREST), (x, _LINE))
    return row


@dataclasses.dataclass(frozen=True)
class _Word:
    """What stays on one line: parts of one or more tokens, and the blank or line break before it."""

    before: str
    parts: Sequence[tuple[str, int | None]]


def _text_block(pieces: Sequence[Piece], title: str, width: int) -> Image.Image:
    font, spots, x, y = _font("".join(piece.text for piece in pieces)), [], 0.0, _LINE
    for word in _fitting(_words(pieces), font, width):
        length = sum(font.getlength(text) for text, _ in word.parts)
        blank = font.getlength(" ") * bool(word.before) * bool(x)
        if "\n" in word.before or x + blank + length > width:
            x, y = 0.0, y + _LINE
        else:
            x += blank
        for text, keep in word.parts:
            spots.append((x, y, text, _DROPPED if keep == 0 else _INK))
            x += font.getlength(text)
    block = Image.new("RGB", (width, y + _LINE), "white")
    draw = ImageDraw.Draw(block)
    draw.text((0, 0), title, (90, 90, 160), font)
    for x, y, text, colour in spots:
        draw.text((x, y), text, colour, font)
    return block


def _words(pieces: Sequence[Piece]) -> Iterator[_Word]:
    before, parts = "", []
    for piece in pieces:
        for text in re.findall(r"\s+|\S+", piece.text):
            if not text.isspace():
                parts.append((text, piece.keep))
                continue
            if parts:
                yield _Word(before, parts)
                before, parts = "", []
            before += text
    if parts:
        yield _Word(before, parts)


def _fitting(words: Iterator[_Word], font: _AnyFont, width: int) -> Iterator[_Word]:
    """What is wider than a line, such as an address or Chinese, may be broken anywhere."""
    for word in words:
        if sum(font.getlength(text) for text, _ in word.parts) <= width:
            yield word
            continue
        before = word.before
        for text, keep in word.parts:
            for letter in text:
                yield _Word(before, [(letter, keep)])
                before = ""


def _font(text: str = "") -> _AnyFont:
    """Pillow's own font knows ASCII; other text takes the first of the machine's fonts that know more."""
    if not text.isascii():
        matplotlib = importlib.util.find_spec("matplotlib")
        shipped = [] if matplotlib is None or matplotlib.origin is None else [Path(matplotlib.origin).parent / _SHIPPED]
        for font in (*_WIDE_FONTS, *shipped):
            with contextlib.suppress(OSError):
                return ImageFont.truetype(font, _FONT)
    return ImageFont.load_default(_FONT)
