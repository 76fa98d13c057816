"""Golden 02, and what any predictor must hold at any place.

B batch, M images, N image tokens, T text tokens, D features.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynllava_jax.config.sparsity import LinearPredictor, MlpPredictor, Predictor, TransformerPredictor
from dynllava_jax.model.predictors import MlpScorer, Scorer, TransformerScorer, learned
from dynllava_jax.sparsify.selector import ImageView, Place, SelectorContext, TokenView
from tests import golden_files
from tests.model.golden_weights import checkpoint, fill_image_predictor, fill_text_predictor

TOLERANCE = 2e-5
TRANSFORMER = TransformerPredictor(width=32, num_heads=4, mlp_width=64)
KINDS = [LinearPredictor(), MlpPredictor(width=32), TRANSFORMER]


def _context(place: Place, predictor: Predictor, width: int = 64) -> SelectorContext:
    return SelectorContext(width=width, count=16, kept=6, keep_rate=0.4, predictor=predictor, place=place)


def _image_view(features: jax.Array) -> ImageView:
    batch, images = features.shape[:2]
    keys = jax.random.split(jax.random.key(0), batch)
    return ImageView(features, jnp.ones((batch, images), bool), None, None, None, None, keys)


def _token_view(hidden: jax.Array) -> TokenView:
    batch, length = hidden.shape[:2]
    positions = jnp.broadcast_to(jnp.arange(length), (batch, length))
    return TokenView(hidden, positions, jax.random.split(jax.random.key(0), batch))


@jax.jit
def _judge(scorer: Scorer, view: ImageView | TokenView) -> jax.Array:
    return scorer(view)


@pytest.fixture(scope="module")
def image_scorer() -> TransformerScorer:
    scorer = TransformerScorer(nnx.Rngs(params=0), _context("image", TRANSFORMER))
    fill_image_predictor(scorer, checkpoint())
    return scorer


def test_golden_image(image_scorer: TransformerScorer) -> None:
    golden = golden_files.arrays("02_predictors")
    logits = image_scorer.logits(jnp.asarray(golden["vision_x"]))
    np.testing.assert_allclose(logits, golden["vision_logits_ones"], atol=TOLERANCE, rtol=0)
    partial = image_scorer.logits(jnp.asarray(golden["vision_x"]), jnp.asarray(golden["policy_partial"])[..., 0])
    np.testing.assert_allclose(partial, golden["vision_logits_partial"], atol=TOLERANCE, rtol=0)


def test_image_margin_orders_as_the_official_log_softmax(image_scorer: TransformerScorer) -> None:
    golden = golden_files.arrays("02_predictors")
    scores = image_scorer(_image_view(jnp.asarray(golden["vision_x"])[:, None]))
    assert scores.shape == (2, 1, 16)
    assert scores.dtype == jnp.float32
    np.testing.assert_array_equal(np.argsort(scores[:, 0]), np.argsort(golden["vision_logsoftmax_ones"][..., 0]))


@pytest.mark.parametrize("name", ["output_text", "instruct"])
def test_golden_text(name: str) -> None:
    golden = golden_files.arrays("02_predictors")
    scorer = MlpScorer(nnx.Rngs(params=0), _context("output", MlpPredictor(width=32)))
    fill_text_predictor(scorer, checkpoint(), name)
    wanted = golden[f"{name}_logits"]
    hidden = jnp.asarray(golden["text_x"])
    np.testing.assert_allclose(scorer.logits(hidden), wanted, atol=TOLERANCE, rtol=0)
    margin = _judge(scorer, _token_view(hidden))
    np.testing.assert_allclose(margin, wanted[..., 0] - wanted[..., 1], atol=2 * TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_any_kind_serves_images(kind: Predictor) -> None:
    scorer = learned(nnx.Rngs(params=0), _context("image", kind))
    features = jax.random.normal(jax.random.key(1), (2, 3, 16, 64))
    scores = _judge(scorer, _image_view(features))
    assert scores.shape == (2, 3, 16)
    alone = _judge(scorer, _image_view(features[1:, 2:]))
    np.testing.assert_allclose(scores[1:, 2:], alone, atol=TOLERANCE)
    assert len(np.unique(scores)) == scores.size


@pytest.mark.parametrize("kind", KINDS)
def test_text_tokens_are_judged_one_by_one(kind: Predictor) -> None:
    scorer = learned(nnx.Rngs(params=0), _context("output", kind))
    hidden = jax.random.normal(jax.random.key(1), (2, 5, 64))
    margin = _judge(scorer, _token_view(hidden))
    for token in range(5):
        np.testing.assert_allclose(
            margin[:, token : token + 1], _judge(scorer, _token_view(hidden[:, token : token + 1])), atol=TOLERANCE
        )


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_in_float32_score_out(kind: Predictor) -> None:
    scorer = learned(nnx.Rngs(params=0), _context("image", kind))
    features = jax.random.normal(jax.random.key(1), (1, 1, 16, 64))
    low = _judge(scorer, _image_view(features.astype(jnp.bfloat16)))
    assert low.dtype == jnp.float32
    assert scorer.logits(features.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    np.testing.assert_allclose(low, _judge(scorer, _image_view(features)), atol=0.02)


def _parameters(scorer: nnx.Module) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(scorer))


@pytest.mark.parametrize(("width", "image", "text"), [(4096, 8_572_034, 2_270_338), (5120, 9_098_370, 2_796_674)])
def test_official_sizes(width: int, image: int, text: int) -> None:
    contexts = {
        _context("image", TransformerPredictor(), width): image,
        _context("output", MlpPredictor(), width): text,
    }
    for context, wanted in contexts.items():
        assert _parameters(jax.eval_shape(lambda context=context: learned(nnx.Rngs(params=0), context))) == wanted


@pytest.mark.parametrize(("field", "value"), [("width", 64), ("num_heads", 2), ("mlp_width", 32), ("depth", 1)])
def test_every_field_of_the_transformer_counts(field: str, value: int) -> None:
    features = jax.random.normal(jax.random.key(1), (1, 1, 16, 64))
    scores = []
    for kind in (TRANSFORMER, dataclasses.replace(TRANSFORMER, **{field: value})):
        scorer = learned(nnx.Rngs(params=0), _context("image", kind))
        # At initialisation attention is flat and the blocks add next to nothing: make them felt.
        scorer = jax.tree.map(lambda leaf: 10 * leaf, scorer)
        scores.append(_judge(scorer, _image_view(features)))
    assert not np.allclose(*scores, rtol=1e-3)
