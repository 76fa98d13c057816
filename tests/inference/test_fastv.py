"""FastV by its authors' rule: the last prompt token's attention in the layer before, averaged over the heads."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from dynllava_jax.data.batch import make_batch
from dynllava_jax.data.spans import expand
from dynllava_jax.inference.prefill import PrefillPlan, prefill
from dynllava_jax.model.probe import Probe
from dynllava_jax.nn.rope import rope
from dynllava_jax.testing import tiny_config, tiny_model

IMAGE = -200


def test_fastv_keeps_what_the_last_token_attends_to_most() -> None:
    sparsity = dataclasses.replace(tiny_config().sparsity, image_selector="fastv", output_selector=None)
    config = dataclasses.replace(tiny_config(), sparsity=sparsity)
    model, rng = tiny_model(config), np.random.default_rng(0)
    ids = [rng.integers(3, 500, size).tolist() for size in (12, 7)]
    samples = [expand([*row[:4], IMAGE, *row[4:]], None, image_tokens=16, round_ids=()) for row in ids]
    pixels = [[rng.standard_normal((56, 56, 3)).astype(np.float32)] for _ in ids]
    batch = make_batch(samples, pixels, length=32, slots=1, rows=2)
    plan = PrefillPlan(sparsity, 32, probe=Probe(hidden=True))
    keys = jax.random.split(jax.random.key(0), 2)
    out = jax.jit(prefill, static_argnames="plan")(model, batch, keys, plan=plan)
    assert out.trace is not None
    assert out.selection.image_index is not None

    layer = jax.tree.map(lambda x: x[sparsity.sparse_layer - 1], model.decoder.shallow)
    entering = out.trace[0][sparsity.sparse_layer - 2]
    query, key, _ = layer.attention.project(
        layer.attention_norm(entering), rope(config.decoder, jnp.asarray(batch.positions))
    )
    for row, sample in enumerate(samples):
        last, heads = sample.length - 1, query.shape[1]
        shared = np.repeat(np.asarray(key[row]), heads // key.shape[1], axis=0)[:, : last + 1]
        scores = np.einsum("he,hne->hn", np.asarray(query[row])[:, last], shared) / np.sqrt(query.shape[-1])
        weights = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
        rank = weights.mean(0)[4:20]
        wanted = np.sort(np.argsort(-rank)[: config.kept_image_tokens])
        np.testing.assert_array_equal(out.selection.image_index[row, 0], wanted)
