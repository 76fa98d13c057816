"""The model that comes with the package, so that the first minute needs no download.

How its weights were trained, and what they know: docs/demo.md.
"""

from pathlib import Path

from dynllava_jax.data.tokenizer import Tokenizer

CHECKPOINT = Path(__file__).parent / "checkpoint"
TOKENIZER = Path(__file__).parent / "tokenizer"


def tokenizer() -> Tokenizer:
    """The one that the demo's checkpoints are made with."""
    return Tokenizer.load(TOKENIZER)
