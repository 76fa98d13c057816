"""Cross-entropy in chunks, shares of a global batch, and the cases in which the official loss is NaN."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynllava_jax.config.training import LossConfig
from dynllava_jax.data.batch import Batch
from dynllava_jax.data.spans import Kind
from dynllava_jax.errors import InputError
from dynllava_jax.kernels import xla
from dynllava_jax.model.decoder import run_stack
from dynllava_jax.model.dynllava import DynamicLlava
from dynllava_jax.nn.rope import rope
from dynllava_jax.testing import tiny_config, tiny_model
from dynllava_jax.training.cross_entropy import cross_entropy, shift
from dynllava_jax.training.decisions import GumbelRule, draw_noise
from dynllava_jax.training.forward import ForwardPlan
from dynllava_jax.training.loss import LossOutput, compute_loss, shares
from tests.training.batches import batch_of, instructed, sample

LOSS = LossConfig(min_answer_tokens=6, min_instruction_tokens=5, chunk=16)


def loss_of(model: DynamicLlava, batch: Batch, loss: LossConfig = LOSS, tau: float = 1.0) -> LossOutput:
    keys = jax.vmap(jax.random.key)(jnp.arange(batch.tokens.shape[0]))

    @jax.jit
    def run(model: DynamicLlava, batch: Batch) -> LossOutput:
        rule = GumbelRule(draw_noise(batch, keys, model.config.image_tokens), jnp.float32(tau))
        share = shares(batch.need_labels(), batch.lengths)
        return compute_loss(model, batch, keys, rule, share, ForwardPlan(loss, remat="none"))

    return run(model, batch)


@pytest.mark.parametrize(
    "chunk", [pytest.param(1, marks=pytest.mark.slow), 7, pytest.param(64, marks=pytest.mark.slow)]
)
def test_chunks_change_nothing(chunk):
    model = tiny_model()
    batch = batch_of(model.config, [sample(model.config, i, 10, 9 + i) for i in range(3)])
    labels = batch.need_labels()
    hidden = jax.random.normal(jax.random.key(0), (*labels.shape, 64))

    def whole(hidden):
        logits = jax.nn.log_softmax(model.decoder.logits(hidden))
        targets = shift(labels)
        picked = jnp.take_along_axis(logits, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
        return -jnp.sum(jnp.where(targets != -100, picked, 0.0), axis=-1)

    def ours(hidden):
        return cross_entropy(model.decoder, hidden, labels, chunk)

    np.testing.assert_allclose(ours(hidden), whole(hidden), rtol=1e-5)
    gradients = [jax.jit(jax.grad(lambda x, f=f: jnp.sum(f(x))))(hidden) for f in (ours, whole)]
    np.testing.assert_allclose(*gradients, atol=1e-5)


def test_shares_are_the_mean_over_all_tokens_or_a_mean_of_means():
    labels = np.full((4, 6), -100)
    labels[0, 1:4] = labels[1, 1] = labels[2, 2:] = 5  # 3, 1, 4 and no labels that something predicts
    lengths = jnp.array([6, 6, 6, 0])
    share = shares(jnp.asarray(labels), lengths)
    np.testing.assert_allclose(share.token, 1 / 8)
    np.testing.assert_allclose(share.sample, [1 / 3, 1 / 3, 1 / 3, 0])
    share = shares(jnp.asarray(labels), lengths, groups=2)
    np.testing.assert_allclose(share.token, [1 / 8, 1 / 8, 1 / 8, 1 / 8])
    labels[2, 2:4] = -100
    np.testing.assert_allclose(shares(jnp.asarray(labels), lengths, groups=2).token, [1 / 8, 1 / 8, 1 / 4, 1 / 4])


def test_unusual_samples_have_a_finite_loss_and_the_right_masks():
    config = instructed()
    samples = [
        sample(config, 0, 12, 10),
        sample(config, 1, 12, 0),  # nothing supervised: the answer is empty
        sample(config, 2, 12, 9, images=0),
        sample(config, 3, 12, 9, images=2),
        sample(config, 4, 12, 9, tail=3),  # ends in an instruction: the official answer span is empty
    ]
    batch = batch_of(config, samples, rows=6)
    out = loss_of(tiny_model(config), batch)
    assert np.isfinite(out.total)
    decisions = out.forward.decisions
    kind = np.asarray(batch.kind)
    for place, wanted in (("output", Kind.ANSWER), ("instruct", Kind.LAST_INSTRUCTION)):
        verdict = getattr(decisions, place)
        assert np.all(np.asarray(verdict.keep)[kind != wanted] == 1)
    assert decisions.image is not None
    assert decisions.output is not None
    # A sample without image, without answer, or that only fills the batch misses no rate.
    assert np.asarray(decisions.image.miss)[[2, 5]].tolist() == [0, 0]
    assert np.asarray(decisions.output.miss)[[1, 4, 5]].tolist() == [0, 0, 0]
    policy = np.asarray(decisions.policy)
    assert np.all(policy[(kind == Kind.SYSTEM) | (kind == Kind.PROMPT) | (kind == Kind.PAD)] == 1)
    assert 0 < policy[kind == Kind.IMAGE].mean() < 1
    # Each of two images misses by itself.
    keep = np.asarray(decisions.image.keep)[3]
    expected = np.square(config.sparsity.image_keep_rate - keep.mean(axis=-1)).mean()
    np.testing.assert_allclose(decisions.image.miss[3], expected, rtol=1e-5)


def test_short_answers_are_kept_and_count_as_a_miss_of_nothing():
    config = tiny_config()
    batch = batch_of(config, [sample(config, 0, 12, 5), sample(config, 1, 12, 20)])
    verdict = loss_of(tiny_model(config), batch).forward.decisions.output
    assert verdict is not None
    assert np.all(np.asarray(verdict.keep)[0] == 1)
    assert verdict.miss[0] == 0
    assert verdict.miss[1] > 0


def test_an_answer_of_just_the_wanted_length_is_sparsified():
    config = tiny_config()
    lengths = (LOSS.min_answer_tokens, LOSS.min_answer_tokens - 1)
    batch = batch_of(config, [sample(config, seed, 12, length) for seed, length in enumerate(lengths)])
    verdict = loss_of(tiny_model(config), batch).forward.decisions.output
    assert verdict is not None
    assert np.any(verdict.judged, axis=-1).tolist() == [True, False]


@pytest.mark.slow
@pytest.mark.parametrize("pad_id", [0, None])
def test_the_padding_token_in_a_text_teaches_its_embedding_nothing(pad_id: int | None):
    """In a model without one, as torch's `padding_idx` is None, the same token is like any other."""
    config = dataclasses.replace(tiny_config(), text_prep=dataclasses.replace(tiny_config().text_prep, pad_id=pad_id))
    batch = batch_of(config, [sample(config, 0, 12, 8)])
    first = int(np.argmax(batch.kind[0] == Kind.LAST_INSTRUCTION))
    other = int(batch.tokens[0, first + 1])
    batch = dataclasses.replace(batch, tokens=batch.tokens.at[0, first].set(0))
    gradient = nnx.grad(lambda model: loss_of(model, batch).total)(tiny_model(config)).decoder.embedding[...]
    assert np.any(gradient[other])
    assert np.any(gradient[0]) == (pad_id is None)


@pytest.mark.slow
def test_zeroed_image_tokens_stay_visible_and_teach_the_predictor():
    config = tiny_config()
    config = dataclasses.replace(config, sparsity=dataclasses.replace(config.sparsity, output_selector=None))
    model = DynamicLlava(nnx.Rngs(0), config)  # undecided: the noise decides
    batch = batch_of(config, [sample(config, i, 12, 8) for i in range(2)])
    loss = dataclasses.replace(LOSS, zero_dropped=True)
    out = loss_of(model, batch, loss).forward
    policy = out.decisions.policy
    assert policy is not None
    assert 0 < policy[batch.kind == Kind.IMAGE].mean() < 1

    def everything(query, key, value, layer):
        return xla.attention(query, key, value)

    by = rope(config.decoder, batch.positions)
    deep = run_stack(model.decoder.deep, out.selected_from * policy[:, :, None], by, everything)
    real = np.asarray(batch.kind) != Kind.PAD
    np.testing.assert_allclose(np.asarray(out.hidden)[real], np.asarray(deep.hidden)[real], rtol=1e-4, atol=1e-5)

    grads = nnx.grad(lambda model: loss_of(model, batch, loss).terms["ce"])(model)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(grads.image_predictor))


def test_a_row_that_fills_the_batch_and_longer_padding_change_nothing():
    config = tiny_config()
    samples = [sample(config, i, 12, 8 + i) for i in range(2)]
    model = tiny_model(config)
    alone = loss_of(model, batch_of(config, samples))
    padded = loss_of(model, batch_of(config, samples, rows=4, length=96))
    for name, value in alone.terms.items():
        np.testing.assert_allclose(padded.terms[name], value, rtol=2e-6, err_msg=name)


def test_selectors_that_learn_nothing_decide_as_at_inference():
    config = tiny_config()
    sparsity = dataclasses.replace(config.sparsity, image_selector="stride", output_selector="stride")
    config = dataclasses.replace(config, sparsity=sparsity)
    out = loss_of(tiny_model(config), batch_of(config, [sample(config, 0, 12, 12)]))
    image, output = out.forward.decisions.image, out.forward.decisions.output
    assert image is not None
    assert output is not None
    assert np.asarray(image.keep).sum() == config.kept_image_tokens
    assert np.asarray(output.keep)[np.asarray(output.judged)].sum() == 6
    assert out.terms["image_mask"] == out.terms["output_mask"] == 0


def test_without_selectors_nothing_is_dropped():
    config = dataclasses.replace(tiny_config(), sparsity=tiny_config().sparsity.dense())
    out = loss_of(tiny_model(config), batch_of(config, [sample(config, 0, 12, 12)]))
    assert out.forward.decisions.policy is None
    assert list(out.terms) == ["ce"]


def test_a_merging_selector_cannot_be_trained_with():
    config = tiny_config()
    name = "tests.sparsify.own_selectors:MeanOfNeighbours"
    config = dataclasses.replace(config, sparsity=dataclasses.replace(config.sparsity, image_selector=name))
    with pytest.raises(InputError, match="MeanOfNeighbours merges image tokens"):
        loss_of(tiny_model(config), batch_of(config, [sample(config, 0, 12, 12)]))
