"""Token kinds and spans equal the official ones, and hold for any mix of images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynllava_jax.data.prompt import IMAGE_TOKEN
from dynllava_jax.data.spans import IGNORE, Kind, Sample, expand
from dynllava_jax.errors import InputError
from tests.golden_files import arrays, info

_ROUND = (337, 495)
_P = 16
_CASES = ("train", "train_pos", "trunc", "trunc_empty_answer", "infer", "left", "one_without_image")


def _golden_samples(case: str) -> tuple[list[Sample], dict[str, np.ndarray], dict]:
    facts = info("13_prepare_inputs")["info"]
    assert tuple(facts["special_text_USER"]) == _ROUND
    golden = {
        name.removeprefix(f"{case}."): value
        for name, value in arrays("13_prepare_inputs").items()
        if name.startswith(f"{case}.")
    }
    ids = golden["input_ids"]
    mask = golden.get("attention_mask", np.ones_like(ids, bool))
    labels = golden.get("labels")
    samples = [
        expand(
            ids[row][mask[row]],
            None if labels is None else labels[row][mask[row]],
            image_tokens=_P,
            round_ids=_ROUND,
            max_length=facts[case]["tokenizer_model_max_length"],
        )
        for row in range(len(ids))
    ]
    return samples, golden, facts[case]


@pytest.mark.parametrize("case", _CASES)
def test_golden_spans(case: str) -> None:
    samples, _, facts = _golden_samples(case)
    longest = max(sample.length for sample in samples)
    spans = []
    for sample in samples:
        if sample.image_count:
            shift = longest - sample.length if facts["tokenizer_padding_side"] == "left" else 0
            spans.append({name: [shift + edge for edge in span] for name, span in sample.spans().items()})
            spans[-1]["system"][0] = shift
    assert spans == facts["input_embeds_indices"]


@pytest.mark.parametrize("case", _CASES)
def test_golden_arrays(case: str) -> None:
    samples, golden, facts = _golden_samples(case)
    for row, sample in enumerate(samples):
        width = golden["image_index_map"].shape[1]
        own = slice(width - sample.length, None) if facts["tokenizer_padding_side"] == "left" else slice(sample.length)
        np.testing.assert_array_equal(sample.image_index_map, golden["image_index_map"][row][own])
        if sample.labels is not None:
            np.testing.assert_array_equal(sample.labels, golden["out_labels"][row][own])
        if golden["out_attention_mask"].size:
            assert golden["out_attention_mask"][row].sum() == sample.length


def _kinds(sample: Sample) -> str:
    return "".join(".SIPLA"[kind] for kind in sample.kind)


@pytest.mark.parametrize(
    ("ids", "labels", "kinds"),
    [
        ([5, 6, 7], None, "SSS"),  # no image: nothing is ever dropped from the prompt
        ([5, 6, 7], [IGNORE, IGNORE, 7], "SSA"),
        ([5, -200, 8, 9, 6], None, "SIILLL"),  # no round marker: the whole instruction is the last one
        ([5, -200, 6, 8, 9, 6], None, "SIIPLLL"),
        ([-200, 8, 9, 6, 8, 9, 7], None, "IIPPPLLL"),  # the last marker counts
        ([5, -200, 8, 9, -200, 6], None, "SIIPPIIL"),  # only the text after the last image is searched
        ([5, -200, -200], None, "SIIII"),  # nothing after the image
        ([5, -200, 6, 7], [IGNORE, IGNORE, IGNORE, 7], "SIILA"),
        ([5, -200, 6, 7], [IGNORE, IGNORE, 6, IGNORE], "SIILL"),  # a trailing IGNORE leaves no answer
        ([5, -200, 6, 7], [1, 1, 1, 1], "SIIAA"),  # an image is never part of an answer
        ([5, 7], [1, 1], "AA"),
    ],
)
def test_kinds(ids: list[int], labels: list[int] | None, kinds: str) -> None:
    assert _kinds(expand(ids, labels, image_tokens=2, round_ids=(8, 9))) == kinds


def test_a_format_without_roles_has_no_rounds() -> None:
    assert _kinds(expand([-200, 8, 9], None, image_tokens=1, round_ids=())) == "ILL"


@given(
    ids=st.lists(st.sampled_from([IMAGE_TOKEN, 1, 8, 9, 20]), min_size=1, max_size=30),
    ignored=st.integers(0, 30),
    image_tokens=st.integers(1, 5),
)
def test_what_holds_for_every_sample(ids: list[int], ignored: int, image_tokens: int) -> None:
    labels = [IGNORE if index < ignored else token for index, token in enumerate(ids)]
    sample = expand(ids, labels, image_tokens=image_tokens, round_ids=(8, 9))
    images = ids.count(IMAGE_TOKEN)
    assert sample.length == len(ids) + images * (image_tokens - 1)
    assert sample.labels is not None
    assert sample.image_count == images
    assert np.sum(sample.kind == Kind.IMAGE) == images * image_tokens
    assert sample.image_index_map.max() == images * image_tokens - 1
    for number, start in enumerate(sample.image_starts):
        own = slice(start, start + image_tokens)
        np.testing.assert_array_equal(
            sample.image_index_map[own], np.arange(number * image_tokens, (number + 1) * image_tokens)
        )
        assert (sample.labels[own] == IGNORE).all()
    np.testing.assert_array_equal(sample.tokens[sample.kind != Kind.IMAGE], [t for t in ids if t != IMAGE_TOKEN])
    order = sample.kind[sample.kind != Kind.IMAGE]
    assert (np.diff(order) >= 0).all()  # system, prompt, last instruction, answer
    assert not (sample.kind == Kind.PAD).any()


def test_a_cut_through_an_image_is_refused() -> None:
    assert expand([1, -200, 5], None, image_tokens=4, round_ids=(), max_length=5).length == 5
    with pytest.raises(InputError, match="cut its image 1, which takes the tokens 1 to 4"):
        expand([1, -200, 5], None, image_tokens=4, round_ids=(), max_length=4)


def test_bad_rows_are_refused() -> None:
    with pytest.raises(InputError, match="at least one token id"):
        expand([], None, image_tokens=4, round_ids=())
    with pytest.raises(InputError, match="2 token ids but labels of shape"):
        expand([1, 2], [1], image_tokens=4, round_ids=())


@pytest.mark.parametrize("ids", [[1, 2], [-200, 2, -200]])
def test_official_spans_are_those_of_one_image(ids: list[int]) -> None:
    with pytest.raises(ValueError, match="one image"):
        expand(ids, None, image_tokens=4, round_ids=()).spans()
