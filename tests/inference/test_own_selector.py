"""A user's own selectors, named in the config, answer questions without a change to the package."""

import dataclasses
import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.data.image import load_image, preprocess
from dynllava_jax.errors import InputError
from dynllava_jax.inference.assistant import Assistant
from dynllava_jax.inference.buckets import Buckets
from dynllava_jax.inference.request import Answer, Request
from dynllava_jax.model.dynllava import DynamicLlava
from dynllava_jax.sparsify.selector import ImageView, Merged
from dynllava_jax.testing import synthetic_image, tiny_assistant, tiny_config
from tests.inference import own_selectors

OWN = "tests.inference.own_selectors:"
PLAIN = SparsityConfig(image_selector=None, output_selector=None)
BUCKETS = Buckets(rows=(2,), images=(2,), length=(160,), answer=(16,), instruction=(32,), segment=16)
PICTURES = [synthetic_image(1), synthetic_image(2)]
"""16 patches each."""


def assistant(**sparsity: object) -> Assistant:
    chosen = dataclasses.replace(tiny_config().sparsity, **{**vars(PLAIN), **sparsity})
    config = dataclasses.replace(tiny_config(), sparsity=chosen)
    return tiny_assistant(config, buckets=BUCKETS)


def ask(of: Assistant) -> list[Answer]:
    """One request with one picture and one with two, together; each must be what it is alone."""
    requests = [
        Request("What is in the picture?", PICTURES[:1], max_new_tokens=8),
        Request("Compare <image> and <image>, and say it.", PICTURES, max_new_tokens=8),
    ]
    together = of.generate_batch(requests)
    answers = []
    for request, answer in zip(requests, together, strict=True):
        assert isinstance(answer, Answer)
        alone = of.generate_batch([request])[0]
        assert isinstance(alone, Answer)
        assert answer.token_ids == alone.token_ids
        assert answer.kept_image_tokens == alone.kept_image_tokens
        answers.append(answer)
    return answers


def model_of(of: Assistant) -> DynamicLlava:
    return of.engine.model


def pixels(of: Assistant) -> jax.Array:
    return jnp.stack([preprocess(load_image(picture), of.config.image_prep) for picture in PICTURES])


def test_each_takes_less_than_forty_lines() -> None:
    own = [kind for kind in vars(own_selectors).values() if getattr(kind, "__module__", "") == own_selectors.__name__]
    assert len(own) == 6
    assert all(len(inspect.getsource(kind).splitlines()) < 40 for kind in own)


def test_tower_ranks_by_cls() -> None:
    of = assistant(tower_selector=OWN + "Cls", tower_keep_rate=0.5)
    attention = model_of(of).vision(pixels(of), attention=True).cls_attention
    assert attention is not None
    best = np.sort(np.argsort(-np.asarray(attention).mean(axis=1), axis=-1)[:, :8]).tolist()
    answers = ask(of)
    assert answers[0].kept_image_tokens == best[:1]
    assert answers[1].kept_image_tokens == best
    prompt = of.prepare(Request("What is in the picture?", PICTURES[:1])).sample
    assert np.sum(prompt.kind == 2) == 8  # the prompt has slots only for what the tower's selector left


def test_embed_ranks_projected_features() -> None:
    of = assistant(embed_selector=OWN + "Norm", embed_keep_rate=0.25)
    model = model_of(of)
    features = np.asarray(model.projector(model.vision(pixels(of)).features))
    best = np.sort(np.argsort(-np.linalg.norm(features, axis=-1), axis=-1)[:, :4]).tolist()
    assert ask(of)[1].kept_image_tokens == best


def test_image_ranks_by_the_last_query() -> None:
    answers = ask(assistant(image_selector=OWN + "LastQuery", image_keep_rate=0.25))
    assert [len(patches) for patches in answers[1].kept_image_tokens] == [4, 4]
    other = ask(assistant(image_selector="stride", image_keep_rate=0.25))
    assert answers[1].kept_image_tokens != other[1].kept_image_tokens


def test_image_may_have_parameters_and_look_at_the_question() -> None:
    of = assistant(image_selector=OWN + "Question", image_keep_rate=0.25)
    assert model_of(of).image_predictor.query.kernel.shape == (64, 64)
    kept = {str(of.generate(PICTURES[0], q, max_new_tokens=1).kept_image_tokens) for q in ("Red?", "A dog?", "Why?")}
    assert len(kept) > 1


@pytest.mark.parametrize("place", ["tower", "embed", "image"])
def test_merged_tokens(place: str) -> None:
    answers = ask(assistant(**{f"{place}_selector": OWN + "Pairs", f"{place}_keep_rate": 0.5}))
    assert answers[1].kept_image_tokens == [list(range(0, 16, 2))] * 2
    length = 8 if place != "image" else 16
    assert answers[0].cache_tokens["shallow"] - answers[0].cache_tokens["deep"] == length - 8


@pytest.mark.parametrize("place", ["tower", "embed", "image"])
@pytest.mark.parametrize("shift", [0, 1000])
def test_merging_into_no_place_or_into_one_twice_is_refused(
    place: str, shift: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = own_selectors.Pairs.__call__

    def wrong(self: own_selectors.Pairs, view: ImageView) -> Merged:
        merged = pairs(self, view)
        return Merged(merged.tokens, merged.index * (shift > 0) + shift)

    monkeypatch.setattr(own_selectors.Pairs, "__call__", wrong)
    of = assistant(**{f"{place}_selector": OWN + "Pairs", f"{place}_keep_rate": 0.5})
    with pytest.raises(InputError, match="merges tokens at an index that is none, or stands twice"):
        of.generate(PICTURES[0], "What is it?", max_new_tokens=2)
    assert of.generate(None, "What is it?", max_new_tokens=2).token_ids


def test_patches_are_the_original_ones_after_three_selections() -> None:
    """Tower 16 → 12, embed 12 → 6, image 6 → 3; each reports through the ones before it."""
    cuts = {"tower_keep_rate": 0.75, "embed_keep_rate": 0.5, "image_keep_rate": 0.5}
    of = assistant(tower_selector=OWN + "Cls", embed_selector="stride", image_selector="stride", **cuts)
    attention = np.asarray(model_of(of).vision(pixels(of), attention=True).cls_attention).mean(axis=1)
    tower = np.sort(np.argsort(-attention, axis=-1)[:, :12])
    wanted = tower[:, [1, 3, 5, 7, 9, 11]][:, [1, 3, 5]].tolist()
    assert ask(of)[1].kept_image_tokens == wanted


@pytest.mark.parametrize("use_cache", [True, False])
def test_output(use_cache: bool) -> None:
    of = assistant(output_selector=OWN + "EveryThird")
    answer = of.generate(PICTURES[0], "What is it?", max_new_tokens=8, use_cache=use_cache)
    assert answer.kept_output_tokens == [1, 1, 0, 1, 1, 0, 1, None]
    if use_cache:
        assert answer.cache_tokens["shallow"] - answer.cache_tokens["deep"] == 2


def test_instruct() -> None:
    of = assistant(instruct_selector=OWN + "EveryThird")
    request = Request("What is in the picture?", PICTURES[:1], max_new_tokens=1)
    question = int(np.sum(of.prepare(request).sample.kind == 4))
    answer = of.generate(PICTURES[0], request.question, max_new_tokens=1)
    dropped = sum(position % 3 == 2 for position in range(question - 1))  # the last token is never dropped
    assert dropped > 2
    assert answer.cache_tokens["shallow"] - answer.cache_tokens["deep"] == dropped


def test_a_selector_is_refused_where_it_does_not_belong() -> None:
    with pytest.raises(InputError, match="serves tower, not image_selector"):
        assistant(image_selector=OWN + "Cls")
