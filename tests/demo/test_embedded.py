"""The demo's files belong together: tokenizer, preset, shipped scenes."""

import pytest
from PIL import Image

import dynllava_jax as dl
from dynllava_jax.config.presets import demo
from dynllava_jax.data.prompt import round_ids
from dynllava_jax.data.templates import get_template
from dynllava_jax.demo import embedded
from dynllava_jax.demo.dataset import Mixture, sample
from dynllava_jax.demo.pictures import SAMPLES
from dynllava_jax.inference.request import Answer, Request


def test_tokenizer_and_preset_agree() -> None:
    tokenizer, config = embedded.tokenizer(), demo()
    assert tokenizer.vocab_size == config.decoder.vocab_size
    assert round_ids(tokenizer, get_template(config.text_prep.template)) == config.text_prep.round_ids
    assert config.image_tokens == 576
    assert config.kept_image_tokens == 115


def test_texts_are_short_in_tokens_and_come_back() -> None:
    tokenizer, template = embedded.tokenizer(), get_template("vicuna_v1")
    for index in range(100):
        for turn in sample(index, "test", Mixture(9, 0.3)).turns:
            assert turn.answer is not None
            ids = tokenizer.encode(turn.answer, add_bos=False)
            assert tokenizer.decode(ids).strip() == turn.answer
            assert len(ids) < 1.4 * len(turn.answer.split()) + 2
    one_turn = template.render(sample(1, "test", Mixture(1, 0.0)).turns)
    assert len(tokenizer.encode(one_turn, add_bos=True)) < 60


@pytest.mark.slow
def test_the_embedded_model_answers_the_shipped_questions() -> None:
    scenes = [picture for picture in SAMPLES if picture.answer]
    assistant = dl.load("demo")
    answers = assistant.generate_batch([Request(one.question, [one.path], 8) for one in scenes])
    right = [isinstance(got, Answer) and got.text == one.answer for got, one in zip(answers, scenes, strict=True)]
    assert right[0]  # the first command of the README asks it
    assert sum(right) >= 3


def test_shipped_scenes_are_scenes() -> None:
    scenes = [picture for picture in SAMPLES if picture.scene]
    assert len(scenes) >= 3
    assert SAMPLES[0].scene
    for picture in scenes:
        with Image.open(picture.path) as image:
            assert image.size == (336, 336)
