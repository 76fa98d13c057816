"""Ids and labels equal what the official preprocessing gives, template by template."""

import hashlib
import json
import shutil
from collections import Counter
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynllava_jax.data.conversation import Tokenized, tokenize_conversation
from dynllava_jax.data.prompt import IMAGE_TOKEN
from dynllava_jax.data.records import Record, SampleError, read_record
from dynllava_jax.data.spans import IGNORE
from dynllava_jax.data.templates import Turn, get_template, names
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.testing import write_tokenizer
from tests.golden_files import ROOT, arrays, info

_FACTS = json.loads((Path(__file__).parent / "conversation_facts.json").read_text(encoding="utf-8"))
_TOKENIZER = Tokenizer.load(ROOT / "checkpoint")


def _record(*turns: tuple[str, str], images: int = 0) -> Record:
    return Record("x", ("1.png",) * images, tuple(Turn(*turn) for turn in turns))


def _runs(labels: np.ndarray) -> list[int]:
    """How many labels are ignored and learned by turns, ignored ones first."""
    runs = [(learned, len(list(group))) for learned, group in groupby(labels.tolist(), lambda label: label != IGNORE)]
    return [0] * runs[0][0] + [count for _, count in runs]


def _learned(made: Tokenized) -> str:
    return _TOKENIZER.decode(made.labels[made.labels != IGNORE].tolist(), skip_special=False)


@pytest.fixture(scope="module")
def legacy(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("legacy")
    shutil.copy(ROOT / "checkpoint" / "tokenizer.model", folder)
    config = json.loads((ROOT / "checkpoint" / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"legacy": True}))
    return Tokenizer.load(folder)


@pytest.mark.parametrize("number", range(3))
def test_golden_conversations(number: int) -> None:
    golden = arrays("15_preprocess_text")
    value = {"image": "1.png", "conversations": info("15_preprocess_text")["info"]["conversations"][number]}
    made = tokenize_conversation(_TOKENIZER, get_template("vicuna_v1"), read_record(value, "golden"))
    np.testing.assert_array_equal(made.ids, golden[f"conv{number}.input_ids"])
    np.testing.assert_array_equal(made.labels, golden[f"conv{number}.labels"])


@pytest.mark.parametrize("fact", _FACTS["cases"], ids=lambda fact: "{template}-{legacy}-{conversation}".format(**fact))
def test_equal_to_the_official_preprocessing(fact: dict, legacy: Tokenizer) -> None:
    tokenizer, template = legacy if fact["legacy"] else _TOKENIZER, get_template(fact["template"])
    said = _FACTS["conversations"][fact["conversation"]]
    record = read_record({"id": "x", **said, "image": "1.png" if said["image"] else None}, "facts")
    if fact["runs"] is None:
        with pytest.raises(SampleError, match="no supervised token") as error:
            tokenize_conversation(tokenizer, template, record)
        assert (error.value.id, error.value.reason) == ("x", "no supervised token")
        return
    made = tokenize_conversation(tokenizer, template, record)
    assert hashlib.sha256(made.ids.astype("<i4").tobytes()).hexdigest()[:16] == fact["ids"]
    assert _runs(made.labels) == fact["runs"]
    np.testing.assert_array_equal(made.labels[made.labels != IGNORE], made.ids[made.labels != IGNORE])


def test_the_facts_cover_every_template_but_chatml() -> None:
    covered = Counter(fact["template"] for fact in _FACTS["cases"] if fact["runs"])
    assert {*covered, "mpt", "chatml_direct"} == set(names())


@pytest.mark.parametrize("name", ["mpt", "chatml_direct"])
@given(turns=st.lists(st.tuples(*2 * [st.sampled_from(["the car", "two dogs", "é", " a\n"])]), min_size=1, max_size=3))
def test_chatml_learns_each_answer_and_its_end(name: str, turns: list[tuple[str, str]]) -> None:
    """The official `preprocess_mpt` ignores nearly everything as a mismatch; see docs/differences.md."""
    made = tokenize_conversation(_TOKENIZER, get_template(name), _record(*turns))
    assert _learned(made).replace(" ", "") == "".join(f"{answer}<|im_end|>" for _, answer in turns).replace(" ", "")


def test_an_unknown_token_is_no_padding() -> None:
    assert "<unk>" in _learned(tokenize_conversation(_TOKENIZER, get_template("v1"), _record(("q", "a <unk> b"))))


@pytest.mark.parametrize("name", [name for name in names() if name != "plain"])
def test_every_form_leaves_out_an_answer_that_opens_a_conversation(name: str) -> None:
    said = [{"from": "gpt", "value": "Hello!"}, {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    made, rest = (
        tokenize_conversation(_TOKENIZER, get_template(name), read_record({"conversations": part}, "x"))
        for part in (said, said[1:])
    )
    np.testing.assert_array_equal(made.ids, rest.ids)
    np.testing.assert_array_equal(made.labels, rest.labels)


def test_several_pictures_stay_where_they_are() -> None:
    template = get_template("v1")
    made = tokenize_conversation(_TOKENIZER, template, _record(("Is <image> like <image>?", "no"), images=2))
    (first, second) = np.flatnonzero(made.ids == IMAGE_TOKEN)
    assert _TOKENIZER.decode(made.ids[first + 1 : second].tolist()).strip() == "like"
    assert _learned(made).strip() == "no</s>"
    apart = _record(("Is it <image>?", "a"), ("Or this?\n<image>", "b"), images=2)
    assert np.sum(tokenize_conversation(_TOKENIZER, template, apart).ids == IMAGE_TOKEN) == 2


@pytest.mark.parametrize("size", [300, 512, 600])
def test_the_tokenizer_for_tests_serves_several_rounds(size: int, tmp_path: Path) -> None:
    write_tokenizer(tmp_path, vocab_size=size)
    tokenizer = Tokenizer.load(tmp_path)
    made = tokenize_conversation(tokenizer, get_template("v1"), _record(("What?", "The cat."), ("Where?", "Left.")))
    learned = tokenizer.decode(made.labels[made.labels != IGNORE].tolist(), skip_special=False)
    assert learned.replace(" ", "") == "Thecat.</s>Left.</s>"


@pytest.mark.parametrize(
    ("name", "record", "reason"),
    [
        ("v1", _record(("q", "a"), images=1), "<image> and pictures differ in number"),
        ("v1", _record(("<image> <image>", "a"), images=1), "<image> and pictures differ in number"),
        ("v1", _record(("q", "")), "empty question or answer"),
        ("llama_2", _record(("q", "a"), ("", "a")), "empty question or answer"),
        ("v1", _record(("q ASSISTANT: ", "a")), "no supervised token"),
        ("plain", _record(("q", "a")), "no sample for the plain template"),
        ("plain", _record(("<image>", "a"), ("q", "a"), images=1), "no sample for the plain template"),
    ],
)
def test_a_bad_sample_is_named(name: str, record: Record, reason: str) -> None:
    with pytest.raises(SampleError, match="Sample 'x'") as error:
        tokenize_conversation(_TOKENIZER, get_template(name), record)
    assert error.value.reason == reason


@pytest.mark.slow
@settings(max_examples=40)
@given(
    turns=st.lists(st.tuples(st.text(min_size=1, max_size=9), st.text(min_size=1, max_size=9)), min_size=1, max_size=3),
    name=st.sampled_from([name for name in names() if name != "plain"]),
)
def test_whatever_the_text_labels_are_ids_or_the_sample_is_bad(turns: list[tuple[str, str]], name: str) -> None:
    try:
        made = tokenize_conversation(_TOKENIZER, get_template(name), _record(*turns))
    except SampleError:
        return
    learned = made.labels != IGNORE
    assert learned.any()
    assert not learned[0]
    np.testing.assert_array_equal(made.labels[learned], made.ids[learned])
