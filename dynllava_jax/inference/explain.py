"""An answer together with everything that was decided on the way to it, for whoever wants to look.

Y, X pixels; G cells of the grid of image tokens along one side, P image tokens.
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Bool, Float, UInt8

from dynllava_jax.config.model import ImagePrep, ModelConfig
from dynllava_jax.data.tokenizer import StreamDecoder, Tokenizer
from dynllava_jax.inference.request import Answer
from dynllava_jax.inference.run import Run


@dataclasses.dataclass(frozen=True)
class Piece:
    """The text that one answer token completes.

    `keep` says whether the deep stack stored the token: 1, 0, or None of one that was never fed back.
    """

    text: str
    keep: int | None


@dataclasses.dataclass(frozen=True)
class SeenImage:
    """What became of one picture.

    Attributes:
        pixels: the picture as the tower saw it: scaled, cropped or padded.
        kept: which cells of the grid of image tokens entered the deep stack (576 tokens: 24×24 patches).
        scores: what the tokens were ranked by, the higher the rather kept; NaN where a cell's token was gone before;
            None when nothing was ranked.
    """

    pixels: UInt8[np.ndarray, "Y X 3"]
    kept: Bool[np.ndarray, "G G"]
    scores: Float[np.ndarray, "G G"] | None


@dataclasses.dataclass(frozen=True)
class Explanation:
    """An answer, its pictures and its text in pieces."""

    answer: Answer
    images: tuple[SeenImage, ...]
    pieces: tuple[Piece, ...]

    @property
    def text_kept(self) -> tuple[int, int]:
        """Answer tokens that the deep stack stored, and those that it was asked about."""
        judged = [piece.keep for piece in self.pieces if piece.keep is not None]
        return sum(judged), len(judged)


def explain(
    run: Run, answer: Answer, pixels: Sequence[np.ndarray], tokenizer: Tokenizer, config: ModelConfig
) -> Explanation:
    """The explanation of a finished run's first row.

    Args:
        run: the run.
        answer: what was read off it.
        pixels: the row's preprocessed pictures.
        tokenizer, config: the model's.
    """
    assert run.opened is not None
    origin, scores = jax.device_get((run.opened.origin, run.opened.scores))
    images = []
    for number, (picture, kept) in enumerate(zip(pixels, answer.kept_image_tokens, strict=True)):
        ranked = None if scores is None else _on_grid(config, origin[0, number], scores[0, number])
        chosen = _on_grid(config, np.array(kept, np.int32), np.ones(len(kept), np.float32))
        images.append(SeenImage(_as_seen(picture, config.image_prep), chosen == 1, ranked))
    return Explanation(answer, tuple(images), _pieces(answer, tokenizer))


def _on_grid(config: ModelConfig, origin: np.ndarray, values: Float[np.ndarray, " P"]) -> Float[np.ndarray, "G G"]:
    """Values of image tokens at the cells that they stand for; NaN elsewhere."""
    # A tower may give CLS's feature first, which stands for no patch.
    extra = config.vision.num_features - config.vision.num_patches
    count = dataclasses.replace(config, sparsity=dataclasses.replace(config.sparsity, tower_selector=None))
    side = math.isqrt(count.projected_tokens - extra)
    grid = np.full(extra + side * side, np.nan, np.float32)
    grid[origin] = values
    return grid[extra:].reshape(side, side)


def _as_seen(pixels: np.ndarray, prep: ImagePrep) -> UInt8[np.ndarray, "Y X 3"]:
    plain = pixels * np.asarray(prep.std, np.float32) + np.asarray(prep.mean, np.float32)
    return np.clip(np.rint(plain * 255), 0, 255).astype(np.uint8)


def _pieces(answer: Answer, tokenizer: Tokenizer) -> tuple[Piece, ...]:
    """Joined they are the answer's text: what a stop string took back stays away."""
    decoder, pieces, left = StreamDecoder(tokenizer), [], answer.text
    for token, keep in zip(answer.token_ids, answer.kept_output_tokens, strict=True):
        text = decoder.push([token])[: len(left)]
        pieces.append(Piece(text, keep))
        left = left[len(text) :]
    if pieces and left:
        pieces[-1] = Piece(pieces[-1].text + left, pieces[-1].keep)
    return tuple(pieces)
