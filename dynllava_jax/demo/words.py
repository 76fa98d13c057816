"""The decoder's words for what a patch shows: the projection of its features shall lie close to them.

LLaVA finds a tower whose features lie by their captions (CLIP), a decoder that knows words, and aligns the two in a
first stage that trains the projector alone. The demo's begins with nothing, so its tower, projector and word embeddings
learn together to name each patch; the decoder then attends from a word to the patches that show it.

B pictures, P patches, W words of a group, V vocabulary, D decoder features.
"""

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from dynllava_jax.config.model import ModelConfig
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.demo.catalogue import BACKGROUNDS, COLOURS, COLUMNS, OBJECTS, ROWS

_SHARPNESS = 20.0
"""What a cosine is multiplied with before the softmax."""
_BACKGROUND_WEIGHT = 0.1
"""Of a patch without a thing, beside one with: most patches have none."""
_EVERYWHERE = ("row", "column")
"""Groups for which every patch counts alike."""
_SPREAD_WEIGHT = 5.0
_ARTICLES = ("a ", "the ")


def groups(tokenizer: Tokenizer, vocabulary: int) -> dict[str, Float[np.ndarray, "W V"]]:
    """Names for what a patch shows; it has at most one of each group. A name is the mean of its tokens."""
    names = {
        "name": [thing.name for thing in OBJECTS] + [background.phrase for background in BACKGROUNDS],
        "plural": [thing.plural for thing in OBJECTS],
        "colour": COLOURS,
        "size": ("small", "large"),
        "row": ROWS,
        "column": COLUMNS,
    }
    found = {}
    for group, words in names.items():
        found[group] = np.zeros((len(words), vocabulary), np.float32)
        for row, word in zip(found[group], words, strict=True):
            for article in _ARTICLES:
                word = word.removeprefix(article)
            ids = tokenizer.encode(word, add_bos=False)
            row[ids] = 1 / len(ids)
    return found


def labels(config: ModelConfig, seen: dict[str, Int[Array, "B P"]]) -> dict[str, Int[Array, "B P"]]:
    """The number of a patch's word in each group, negative where it has none. `seen`: its labels by `patches.heads`."""
    thing, grid = seen["thing"], config.vision.grid
    return {
        "name": jnp.where(thing > 0, thing - 1, len(OBJECTS) + seen["background"]),
        "plural": thing - 1,
        "colour": seen["colour"],
        "size": seen["size"],
        "row": seen["y"] * len(ROWS) // grid,
        "column": seen["x"] * len(COLUMNS) // grid,
    }


def loss(
    projected: Float[Array, "B P D"],
    embedding: Float[Array, "V D"],
    words: dict[str, Float[np.ndarray, "W V"]],
    wanted: dict[str, Int[Array, "B P"]],
) -> Float[Array, ""]:
    """Cross entropy over each group's words by their cosines, and a penalty on words that lie close to each other."""
    seen, table = _unit(projected), _unit(embedding)
    total = _SPREAD_WEIGHT * jnp.mean((table @ table.T - jnp.eye(len(table))) ** 2) * table.shape[1]
    for group, rows in words.items():
        label = wanted[group]
        logits = _SHARPNESS * seen @ _unit(jnp.asarray(rows) @ table).T
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(label, 0))
        elsewhere = 1.0 if group in _EVERYWHERE else _BACKGROUND_WEIGHT
        weight = jnp.where(wanted["plural"] >= 0, 1.0, elsewhere) * (label >= 0)
        total += jnp.sum(losses * weight) / jnp.maximum(jnp.sum(weight), 1)
    return total


def at_scale(
    projected: Float[Array, "B P D"], embedding: Float[Array, "V D"], std: float
) -> tuple[Float[Array, ""], Float[Array, "V D"]]:
    """The factor that gives projections a mean square of `std`², as freshly initialised words have it, and the
    embedding with rows of that length: only directions were learned.
    """
    norm = std * embedding.shape[1] ** 0.5
    return norm / jnp.mean(jnp.linalg.norm(projected, axis=-1)), norm * _unit(embedding)


def _unit(x: Float[Array, "*B D"]) -> Float[Array, "*B D"]:
    return x / jnp.sqrt(jnp.sum(x * x, -1, keepdims=True) + 1e-9)
