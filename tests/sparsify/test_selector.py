"""Loading selectors by name, and what happens when a user's own is wrong.

B batch, M images, N image tokens, C features, H heads.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from flax import nnx

from dynllava_jax.config.sparsity import MlpPredictor
from dynllava_jax.errors import InputError
from dynllava_jax.model.predictors import MlpScorer
from dynllava_jax.sparsify.baselines import RandomImage, RandomText, StrideImage, StrideText
from dynllava_jax.sparsify.selector import (
    IMAGE_PLACES,
    TEXT_PLACES,
    ImageView,
    Merged,
    Place,
    SelectorContext,
    TokenView,
    check_margins,
    check_result,
    load_selector,
)
from tests.sparsify import own_selectors

OWN = "tests.sparsify.own_selectors"


def _context(place: Place = "image") -> SelectorContext:
    return SelectorContext(width=8, count=16, kept=4, keep_rate=0.25, predictor=MlpPredictor(width=8), place=place)


def _load(name: str, place: Place = "image") -> Any:
    return load_selector(name, _context(place), nnx.Rngs(params=0))


def _view(batch: int = 2, images: int = 3) -> ImageView:
    features = jax.random.normal(jax.random.key(0), (batch, images, 16, 8))
    attention = jax.nn.softmax(jax.random.normal(jax.random.key(1), (batch, 4, images, 16)))
    keys = jax.random.split(jax.random.key(2), batch)
    return ImageView(features, jnp.ones((batch, images), bool), None, None, None, attention, keys)


def _check(selector: Any, view: ImageView) -> jax.Array | Merged:
    return check_result(selector, _context(), view)


@pytest.mark.parametrize(
    ("name", "image", "text"),
    [("learned", MlpScorer, MlpScorer), ("random", RandomImage, RandomText), ("stride", StrideImage, StrideText)],
)
def test_built_in(name: str, image: type, text: type) -> None:
    for place in IMAGE_PLACES:
        if name != "learned" or place == "image":
            assert type(_load(name, place)) is image
    for place in TEXT_PLACES:
        assert type(_load(name, place)) is text


def test_own_scores_with_own_parameters() -> None:
    selector, view = _load(f"{OWN}:ClsAttention", "tower"), _view()
    assert [leaf.shape for leaf in jax.tree.leaves(selector)] == [(4, 1)]
    assert selector.wants_attention
    scores = check_result(selector, _context("tower"), view)
    assert isinstance(scores, jax.Array)
    assert view.attention is not None
    wanted = np.einsum("bhmn,h->bmn", view.attention, selector.weight.kernel[:, 0])
    np.testing.assert_allclose(scores, wanted, atol=1e-6)


def test_own_merged_tokens() -> None:
    view = _view()
    merged = _check(_load(f"{OWN}:MeanOfNeighbours"), view)
    assert isinstance(merged, Merged)
    assert merged.tokens.shape == (2, 3, 4, 8)
    np.testing.assert_allclose(merged.tokens[1, 2, 3], view.features[1, 2, 12:].mean(axis=0), atol=1e-6)


def test_merged_tokens_in_any_order() -> None:
    view = _view()
    merged, backwards = (_check(_load(f"{OWN}:{name}"), view) for name in ("MeanOfNeighbours", "Backwards"))
    assert isinstance(merged, Merged)
    assert isinstance(backwards, Merged)
    np.testing.assert_array_equal(backwards.tokens, merged.tokens)
    np.testing.assert_array_equal(backwards.index, merged.index)


def test_another_rate_than_the_one_built_with() -> None:
    for kept in (1, 7):
        context = dataclasses.replace(_context(), kept=kept)
        scores = check_result(_load("stride"), context, _view())
        assert isinstance(scores, jax.Array)
        np.testing.assert_array_equal(jnp.sum(scores, axis=-1), kept)


def test_own_text_selector() -> None:
    view = TokenView(jnp.ones((2, 3, 8)), jnp.zeros((2, 3), int), jax.random.split(jax.random.key(0), 2))
    assert _load(f"{OWN}:Loud", "output")(view).shape == (2, 3)


def test_views_and_selectors_are_pytrees() -> None:
    view, selector = _view(), _load("learned")
    scores = jax.jit(lambda selector, view: selector(view))(selector, view)
    np.testing.assert_allclose(scores, selector(view), atol=1e-6)


def test_half_precision_scores_become_float32() -> None:
    scores = _check(_load(f"{OWN}:HalfPrecision"), _view())
    assert isinstance(scores, jax.Array)
    assert scores.dtype == jnp.float32


@pytest.mark.parametrize(
    ("name", "place", "message"),
    [
        ("strid", "image", "did you mean stride"),
        ("nonsense", "output", "output_selector 'nonsense' is unknown"),
        (":Class", "image", "package.module:Class"),
        ("learned", "tower", "tower_selector has no learned form"),
        ("learned", "embed", "embed_selector has no learned form"),
        ("pool", "output", "output_selector pool judges images only"),
        ("fastv", "embed", "Selector fastv serves image, not embed_selector"),
        ("no_such_package.module:Class", "image", "no module no_such_package"),
        ("tests.sparsify.no_such_module:Class", "image", "no module tests.sparsify.no_such_module"),
        (f"{OWN}:ClsAttentoin", "tower", "did you mean ClsAttention"),
        (f"{OWN}:Zzz", "tower", "has no Zzz"),
        (f"{OWN}:NUMBER", "image", "is a int, not a class"),
        (f"{OWN}:NotCallable", "image", r"__call__\(view\)"),
        (f"{OWN}:plain_function", "image", "is a function, not a class"),
        (f"{OWN}:NoModule", "image", "gives a NoModule; it must be an nnx.Module"),
        (f"{OWN}:NeedsMore", "output", "'temperature'"),
        (f"{OWN}:ClsAttention", "image", "serves tower, not image_selector"),
        (f"{OWN}:Loud", "image", "wants_attention = False"),
        (f"{OWN}:WantsAttention", "embed", "no layer stands before embed_selector"),
    ],
)
def test_refusals(name: str, place: Place, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _load(name, place)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_dependency\n", "needs the module no_such_dependency"),
        ("def (\n", "invalid syntax"),
    ],
)
def test_a_module_that_cannot_be_imported(
    source: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_selector.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("broken_selector", None)
    with pytest.raises(InputError, match=message):
        _load("broken_selector:Class")


@pytest.mark.parametrize("own", [own_selectors.WrongShape, own_selectors.WrongMerge])
def test_a_wrong_shape_is_named(own: type[nnx.Module]) -> None:
    with pytest.raises(InputError, match=f"{own.__name__} .*wanted"):
        _check(_load(f"{OWN}:{own.__name__}"), _view())


def test_what_is_no_array_in_a_merge_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as a user calls it
    made: Any = Merged(jnp.ones((2, 3, 4, 8)), None)  # pyright: ignore[reportArgumentType]
    selector: Any = type("Own", (), {"__call__": lambda self, view: made})()
    with pytest.raises(InputError, match=r"Own merges into tokens \(2, 3, 4, 8\) at index None; wanted"):
        _check(selector, _view())


def test_an_index_of_no_whole_numbers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    shape = (2, 3, _context().kept)
    made = Merged(jnp.ones((*shape, 8)), jnp.zeros(shape))
    selector: Any = type("Own", (), {"__call__": lambda self, view: made})()
    with pytest.raises(InputError, match="Own merges at an index of float32; wanted are whole numbers"):
        _check(selector, _view())


@pytest.mark.parametrize(
    ("margins", "words"),
    [
        (lambda view: jnp.ones(view.positions.shape[1]), r"of shape \(5,\); wanted is \(2, 5\)"),
        (lambda view: jnp.ones((*view.positions.shape, 1)), r"of shape \(2, 5, 1\); wanted"),
        (lambda view: jnp.float32(1), r"of shape \(\); wanted"),
        (lambda view: None, "as a NoneType; wanted is an array"),
    ],
)
def test_wrong_margins_are_named_and_do_not_broadcast(margins: Any, words: str) -> None:
    view = TokenView(jnp.ones((2, 5, 8)), jnp.zeros((2, 5), jnp.int32), jax.random.split(jax.random.key(0), 2))
    selector: Any = type("Own", (), {"__call__": lambda self, view: margins(view)})()
    with pytest.raises(InputError, match=f"Own returns margins {words}"):
        check_margins(selector, view)


def test_margins_may_be_of_any_number() -> None:
    view = TokenView(jnp.ones((2, 5, 8)), jnp.zeros((2, 5), jnp.int32), jax.random.split(jax.random.key(0), 2))
    for margins in (jnp.eye(2, 5, dtype=bool), jnp.eye(2, 5, dtype=jnp.bfloat16), np.eye(2, 5, dtype=np.int64)):
        own: Any = type("Own", (), {"__call__": lambda self, view, margins=margins: margins})()
        np.testing.assert_array_equal(check_margins(own, view), np.eye(2, 5, dtype=np.float32))
