"""Figures of the paper (arXiv 2412.00876), 7B, to stand beside ours; other data, so that only the shape compares.

VISION: VQAv2, GQA, POPE, image tokens, TFLOPs of image tokens by equation 13 (tables 1 and 5).
LANGUAGE: perplexity, METEOR, share of the answer that is computed with, on LVIS-VQA single-round (tables 3 and 17).
ABLATIONS: VQAv2, GQA, POPE (tables 6, 7 and 9).
"""

from typing import NamedTuple


class Vision(NamedTuple):
    vqav2: float | None
    gqa: float | None
    pope: float | None
    tokens: int
    tflops: float | None


class Language(NamedTuple):
    perplexity: float
    meteor: float
    kept: float


VISION = {
    "LLaVA-1.5": Vision(78.5, 62.0, 85.9, 576, 10.1),
    "FastV": Vision(75.1, 57.5, 81.0, 144, 3.2),
    "Dynamic-LLaVA I": Vision(78.0, 61.4, 85.0, 115, 2.5),
    "Dynamic-LLaVA I|T": Vision(77.9, 61.3, 85.9, 115, 2.5),
    "Dynamic-LLaVA I|T, r = 50 %": Vision(78.8, 62.3, None, 288, None),
    "Dynamic-LLaVA I|T, r = 80 %": Vision(78.9, 62.5, None, 461, None),
}

LANGUAGE = {
    "LLaVA-1.5": Language(4.59, 0.3103, 1.0),
    "Dynamic-LLaVA I": Language(4.70, 0.3099, 1.0),
    "Random 50 %": Language(111.52, 0.2080, 79 / 159),
    "Structure": Language(9.69, 0.186, 79 / 159),
    "H2O": Language(78.95, 0.038, 79 / 159),
    "FastV + H2O": Language(5.62, 0.307, 79 / 159),
    "Dynamic-LLaVA I|T": Language(4.90, 0.3108, 84 / 159),
    "Dynamic-LLaVA I|T, r^OT = 20 %": Language(5.53, 0.2592, 41 / 159),
    "Dynamic-LLaVA I|T, r^OT = 80 %": Language(4.76, 0.3116, 129 / 159),
}

ABLATIONS = {
    "I|T as the paper trains it": (77.9, 61.3, 85.9),
    "dropped tokens zeroed instead of masked": (76.7, 59.8, 84.5),
    "sparse layer 1": (77.6, 61.3, 85.7),
    "sparse layer 4": (77.9, 61.4, 85.8),
    "LEN 0": (77.4, 61.0, 85.5),
    "LEN 100": (77.8, 61.2, 86.1),
    "lambda 10": (77.9, 61.2, 85.8),
    "lambda 1000": (77.7, 61.3, 85.7),
    "instruct predictor too": (75.3, 60.2, 85.1),
}
