"""Prompts equal the official ones to the character."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynllava_jax.data.templates import Turn, get_template, names
from dynllava_jax.errors import InputError

_FACTS = json.loads((Path(__file__).parent / "template_facts.json").read_text())["prompts"]
_WORDS = st.text(min_size=1, max_size=20)


@pytest.mark.parametrize("name", _FACTS)
def test_prompts_equal_the_official_ones(name: str) -> None:
    for turns, text in _FACTS[name]:
        assert get_template(name).render([Turn(*turn) for turn in turns]) == text


def test_the_facts_cover_every_template() -> None:
    assert set(names()) <= set(_FACTS)


def test_plain_follows_the_pretraining_format_once_there_is_an_answer() -> None:
    assert get_template("plain").render([("<image>", "a red car")]) == "<image>a red car\n"


@pytest.mark.parametrize("name", names())
@given(first=_WORDS, answer=_WORDS, second=_WORDS)
def test_a_continuation_is_what_a_second_question_adds(name: str, first: str, answer: str, second: str) -> None:
    template = get_template(name)
    closed = template.render([Turn(first, answer)])
    assert closed.endswith(template.end)
    assert template.render([(first, answer), (second, None)]) == closed + template.continuation(second)


@pytest.mark.parametrize("name", [name for name in names() if name != "plain"])
def test_an_open_prompt_is_the_beginning_of_the_answered_one(name: str) -> None:
    template = get_template(name)
    assert template.render([("q", "a")]).startswith(template.render([("q", None)]))


def test_only_what_is_not_eos_needs_a_stop_string() -> None:
    assert {name: get_template(name).stop for name in names()} == {
        "vicuna_v1": None,
        "llava_v0": "###",
        "llava_v1": None,
        "llama_2": None,
        "llava_llama_2": None,
        "mistral_instruct": None,
        "mpt": "<|im_end|>",
        "chatml_direct": "<|im_end|>",
        "plain": "\n",
    }


def test_an_unknown_name_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'vicuna_v2'\. Did you mean vicuna_v1"):
        get_template("vicuna_v2")


def test_turns_must_be_there_and_answered() -> None:
    with pytest.raises(InputError, match="at least one question"):
        get_template("v1").render([])
    with pytest.raises(InputError, match="Turn 1 of 2 has no answer"):
        get_template("v1").render([("a", None), ("b", None)])
