"""bfloat16 against float32: how often the most likely token is the same, and how far logits may drift."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.data.batch import make_batch
from dynllava_jax.data.spans import expand
from dynllava_jax.inference.prefill import PrefillPlan, prefill
from dynllava_jax.model.probe import Probe
from dynllava_jax.testing import tiny_config, tiny_model

AGREEMENT = 0.9
"""Share of positions whose most likely token is the same, of those where float32 prefers it by more than MARGIN."""

DRIFT = 0.06
"""Largest logit error, in units of the largest logit: 8 bits of mantissa through 4 layers."""

MARGIN = 0.1


def logits(model, batch, sparsity: SparsityConfig, dtype: str) -> np.ndarray:
    plan = PrefillPlan(sparsity, batch.tokens.shape[1], probe=Probe(logits=True), dtype=dtype)
    keys = jax.vmap(jax.random.key)(jnp.zeros(len(batch.tokens), jnp.uint32))
    model = jax.tree.map(lambda x: x.astype(dtype), model)
    return np.asarray(jax.jit(prefill, static_argnames="plan")(model, batch, keys, plan=plan).logits)


def test_bfloat16_stays_close_to_float32() -> None:
    config, model = tiny_config(), tiny_model()
    # Dense, so that both see the same tokens: a near tie in the selection is another matter.
    sparsity = config.sparsity.dense()
    rng = np.random.default_rng(0)
    samples, images = [], []
    for _ in range(4):
        ids = rng.integers(3, 500, 40).tolist()
        ids.insert(5, -200)
        samples.append(expand(ids, None, image_tokens=config.image_tokens, round_ids=()))
        images.append([rng.standard_normal((56, 56, 3)).astype(np.float32)])
    batch = make_batch(samples, images, length=samples[0].length, slots=1, rows=4)
    full, half = (logits(model, batch, sparsity, dtype) for dtype in ("float32", "bfloat16"))
    assert half.dtype == np.float32  # logits leave the model in float32
    ordered = np.sort(full, axis=-1)
    clear = ordered[..., -1] - ordered[..., -2] > MARGIN
    same = full.argmax(-1) == half.argmax(-1)
    error = np.abs(full - half).max() / np.abs(full).max()
    print(
        f"agreement {same[clear].mean():.3f} of {clear.sum()} clear positions, largest error {error:.4f} of the largest"
    )
    assert same[clear].mean() >= AGREEMENT
    assert error <= DRIFT


@pytest.mark.slow
def test_selection_keeps_mostly_the_same_patches() -> None:
    config, model = tiny_config(), tiny_model()
    rng = np.random.default_rng(1)
    ids = [*rng.integers(3, 500, 10).tolist(), -200, *rng.integers(3, 500, 10).tolist()]
    sample = expand(ids, None, image_tokens=config.image_tokens, round_ids=())
    pixels = rng.standard_normal((56, 56, 3)).astype(np.float32)
    batch = make_batch([sample], [[pixels]], length=sample.length, slots=1, rows=1)
    kept = []
    for dtype in ("float32", "bfloat16"):
        plan = PrefillPlan(config.sparsity, sample.length, dtype=dtype)
        keys = jax.vmap(jax.random.key)(jnp.zeros(1, jnp.uint32))
        cast = jax.tree.map(lambda x, dtype=dtype: x.astype(dtype), model)
        kept.append(
            set(
                np.asarray(jax.jit(prefill, static_argnames="plan")(cast, batch, keys, plan=plan).kept_origin)[
                    0, 0
                ].tolist()
            )
        )
    assert len(kept[0] & kept[1]) >= len(kept[0]) - 1
