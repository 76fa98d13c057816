"""Prompts with images become the official ids."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynllava_jax.data.prompt import IMAGE_TOKEN, continuation_ids, place_images, round_ids, tokenize_prompt
from dynllava_jax.data.templates import get_template, names
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.errors import InputError
from tests.golden_files import ROOT, arrays, info

_TOKENIZER = Tokenizer.load(ROOT / "checkpoint")


def test_golden_prompt() -> None:
    facts, golden = info("15_preprocess_text")["info"], arrays("15_preprocess_text")
    text = get_template("vicuna_v1").render([("<image>\nWhat is in the picture?", None)])
    assert text == facts["inference_prompt"]
    assert tokenize_prompt(_TOKENIZER, text) == golden["inference_prompt_ids"].tolist()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_golden_conversations(number: int) -> None:
    facts, golden = info("15_preprocess_text")["info"], arrays("15_preprocess_text")
    values = [turn["value"] for turn in facts["conversations"][number]]
    # Training moves the image to the front of its question (`preprocess_multimodal`).
    values = [place_images(v.replace("<image>", "").strip(), 1) if "<image>" in v else v for v in values]
    text = get_template("v1").render(list(zip(values[::2], values[1::2], strict=True)))
    assert tokenize_prompt(_TOKENIZER, text) == golden[f"conv{number}.input_ids"].tolist()


def test_round_ids_are_those_of_the_golden_checkpoint() -> None:
    expected = tuple(info("15_preprocess_text")["info"]["special_text_USER"])
    assert round_ids(_TOKENIZER, get_template("vicuna_v1")) == expected == (337, 495)
    assert round_ids(_TOKENIZER, get_template("plain")) == ()


@pytest.mark.parametrize("name", ["vicuna_v1", "llava_v1"])
@given(question=st.text(min_size=1, max_size=20).filter(lambda text: "<image>" not in text))
def test_a_continuation_has_the_ids_of_the_whole_conversation(name: str, question: str) -> None:
    template = get_template(name)
    closed = tokenize_prompt(_TOKENIZER, template.render([("<image>\na", "b")]))
    whole = tokenize_prompt(_TOKENIZER, template.render([("<image>\na", "b"), (question, None)]))
    assert closed + continuation_ids(_TOKENIZER, template, question) == whole


@pytest.mark.parametrize("name", names())
def test_every_template_finds_its_rounds(name: str) -> None:
    template = get_template(name)
    marker = list(round_ids(_TOKENIZER, template))
    assert continuation_ids(_TOKENIZER, template, "the car")[: len(marker)] == marker


def test_images_anywhere() -> None:
    ids = tokenize_prompt(_TOKENIZER, "<image><image>the car<image>")
    assert ids == [1, IMAGE_TOKEN, IMAGE_TOKEN, *_TOKENIZER.encode("the car", add_bos=False), IMAGE_TOKEN]
    assert tokenize_prompt(_TOKENIZER, "<image>", add_bos=False) == [IMAGE_TOKEN]
    assert continuation_ids(_TOKENIZER, get_template("v1"), "a<image>b").count(IMAGE_TOKEN) == 1


def test_images_are_placed_once() -> None:
    assert place_images("What?", 2) == "<image>\n<image>\nWhat?"
    assert place_images("What? <image>", 1) == "What? <image>"
    assert place_images("What?", 0) == "What?"
    with pytest.raises(InputError, match="has 1 <image> but 2 images were given"):
        place_images("<image>", 2)
