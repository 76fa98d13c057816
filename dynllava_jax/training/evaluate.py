"""A run looks at held-out samples: the model as sparsified inference would use it, answers given token by token."""

import math
from collections.abc import Callable, Iterable

import jax

from dynllava_jax.data.batch import Batch
from dynllava_jax.training.step import Metrics

_MAX_EXPONENT = 700.0
"""exp of more is no float."""


def evaluate(look: Callable[[Batch], Metrics], batches: Iterable[Batch]) -> dict[str, float]:
    """Numbers over all batches together, each supervised token counting the same.

    Args:
        look: `Trainer.evaluate` of the state at hand.
        batches: global batches with labels; rows of length 0 count nothing.

    Returns:
        eval/loss: mean cross-entropy of the supervised tokens under the inference rule.
        eval/perplexity: its exponential.
        eval/PLACE_keep_rate: share of what a predictor judged that it kept; left out where it judged nothing.
    """
    sums: dict[str, float] = {}
    for batch in batches:
        for name, value in jax.device_get(look(batch)).items():
            sums[name] = sums.get(name, 0.0) + float(value)
    loss = sums["ce"] / max(sums["tokens"], 1.0)
    rates = {
        f"eval/{place}_keep_rate": sums[f"{place}_kept"] / sums[f"{place}_judged"]
        for place in (name.removesuffix("_judged") for name in sums if name.endswith("_judged"))
        if sums[f"{place}_judged"]
    }
    return {"eval/loss": loss, "eval/perplexity": math.exp(min(loss, _MAX_EXPONENT)), **rates}
