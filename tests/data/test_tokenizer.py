"""The tokenizer equals transformers' slow LlamaTokenizer, and streams what it decodes."""

import functools
import io
import itertools
import json
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynllava_jax.data.tokenizer import StreamDecoder, Tokenizer
from dynllava_jax.errors import InputError
from tests.golden_files import ROOT, arrays, info

_FACTS = json.loads((Path(__file__).parent / "tokenizer_facts.json").read_text())
_GOLDEN = Tokenizer.load(ROOT / "checkpoint")
_TEXTS = st.lists(
    st.one_of(st.sampled_from(["</s>", "<s>", "<unk>", " ", "\u2581", "USER:", " car", "é", "👍"]), st.text(max_size=5))
).map("".join)


def _variant(folder: Path, **changes: Any) -> Path:
    config = json.loads((ROOT / "checkpoint" / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | changes))
    shutil.copy(ROOT / "checkpoint" / "tokenizer.model", folder)
    return folder


@functools.cache
def _transformers_tokenizer() -> Any:
    return pytest.importorskip("transformers").LlamaTokenizer.from_pretrained(ROOT / "checkpoint")


def _byte_level(folder: Path) -> Path:
    """A byte-level `tokenizer.json`, the kind that GPT-2's and Llama 3's are."""
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|end|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    model.train_from_iterator(["a red car is parked near the house " * 3], trainer)
    model.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    return folder


@pytest.mark.parametrize("legacy", [False, True])
def test_ids_equal_the_slow_official_tokenizer(tmp_path: Path, legacy: bool) -> None:
    tokenizer = Tokenizer.load(_variant(tmp_path, legacy=legacy))
    for text, ids in _FACTS["legacy" if legacy else "not_legacy"]["encode"]:
        assert tokenizer.encode(text, add_bos=True) == ids, text


def test_texts_equal_the_slow_official_tokenizer() -> None:
    for ids, text in _FACTS["not_legacy"]["decode"]:
        assert _GOLDEN.decode(ids) == text


def test_golden_texts() -> None:
    golden = arrays("15_preprocess_text")
    for number, text in info("15_preprocess_text")["info"]["texts"].items():
        assert _GOLDEN.encode(text, add_bos=True) == golden[f"text{number}.ids"].tolist()


def test_the_ids_that_have_a_role() -> None:
    roles = (_GOLDEN.bos_id, _GOLDEN.eos_id, _GOLDEN.pad_id, _GOLDEN.vocab_size, _GOLDEN.adds_bos)
    assert roles == (1, 2, 0, 512, True)


@given(text=st.text(alphabet=st.characters(exclude_characters="\u2581", exclude_categories=("Cs",))))
def test_what_is_encoded_decodes_to_itself(text: str) -> None:
    assert _GOLDEN.decode(_GOLDEN.encode(text, add_bos=True)) == _normalised(text)


def _normalised(text: str) -> str:
    import sentencepiece

    model = sentencepiece.SentencePieceProcessor(model_file=str(ROOT / "checkpoint" / "tokenizer.model"))
    plain = text.replace("<unk>", "").replace("</s>", "").replace("<s>", "")
    return model.normalize("x" + plain).replace("\u2581", " ").lstrip(" ")[1:] if plain else ""


@given(ids=st.lists(st.integers(0, 520)), cuts=st.lists(st.integers(0, 30)), skip=st.booleans())
def test_a_stream_says_exactly_what_decode_says(ids: list[int], cuts: list[int], skip: bool) -> None:
    stream = StreamDecoder(_GOLDEN, skip_special=skip)
    bounds = sorted({0, len(ids), *(cut for cut in cuts if cut < len(ids))})
    parts = [stream.push(ids[start:end]) for start, end in itertools.pairwise(bounds)]
    assert "".join(parts) + stream.finish() == _GOLDEN.decode(ids, skip_special=skip)


def test_half_a_character_is_held_back() -> None:
    stream = StreamDecoder(_GOLDEN)
    ids = _GOLDEN.encode("é", add_bos=False)
    assert [stream.push([token]) for token in ids] == ["", "", "é"]
    assert stream.finish() == ""


def test_special_tokens_are_shown_on_request() -> None:
    ids = _GOLDEN.encode("the car</s>", add_bos=True)
    assert _GOLDEN.decode(ids) == "the car"
    assert _GOLDEN.decode(ids, skip_special=False) == "<s> the car</s>"


def test_added_tokens_are_found_first_and_swallow_spaces(tmp_path: Path) -> None:
    added = {"512": {"content": "<image>", "special": True, "lstrip": True, "rstrip": False}}
    folder = _variant(tmp_path, added_tokens_decoder=added)
    (folder / "added_tokens.json").write_text(json.dumps({"<im_start>": 513}))
    tokenizer = Tokenizer.load(folder)
    ids = tokenizer.encode("car  <image><im_start>", add_bos=False)
    assert ids == [*tokenizer.encode("car", add_bos=False), 512, 513]
    assert tokenizer.decode(ids) == "car<im_start>"
    assert tokenizer.vocab_size == 514


def test_a_further_special_token_takes_the_space_in_front_of_the_text(tmp_path: Path) -> None:
    added = {"512": {"content": "<im_start>", "special": True}, "513": {"content": "<im_end>", "special": True}}
    tokenizer = Tokenizer.load(
        _variant(tmp_path, added_tokens_decoder=added, additional_special_tokens=["<im_start>", {"content": "?"}])
    )
    space, mark = (_GOLDEN.backend.id_of(piece) for piece in ("\u2581", "?"))
    for text, ids in (("<im_start>", [512]), ("<im_end>", [space, 513]), ("?", [mark])):
        assert tokenizer.encode(text, add_bos=False) == ids
    plain = Tokenizer.load(_variant(tmp_path, added_tokens_decoder=added))
    assert plain.encode("<im_start>", add_bos=False) == [space, 512]
    more = Tokenizer.load(_variant(tmp_path, added_tokens_decoder=added, additional_special_tokens=["<im_start>"]))
    assert plain.fingerprint() != more.fingerprint()


def test_a_fingerprint_is_of_what_decides_the_ids(tmp_path: Path, byte_level: Tokenizer) -> None:
    (tmp_path / "legacy").mkdir()
    variant = Tokenizer.load(_variant(tmp_path / "legacy", legacy=not _GOLDEN.legacy))
    same = [pickle.loads(pickle.dumps(each)).fingerprint() for each in (_GOLDEN, byte_level)]
    assert same == [_GOLDEN.fingerprint(), byte_level.fingerprint()]
    assert len({*same, variant.fingerprint()}) == 3


def test_a_word_that_is_unknown_keeps_its_space(tmp_path: Path) -> None:
    """Without byte fallback it has the id of `<unk>`, which loses the space in front only where the text names it."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a red car", "a house near the car"]),
        model_writer=model,
        vocab_size=40,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"legacy": False}))
    tokenizer = Tokenizer.load(tmp_path)
    space = tokenizer.backend.id_of("\u2581")
    assert tokenizer.encode("\u00e9", add_bos=False) == [space, 0]
    assert tokenizer.encode("<unk>", add_bos=False) == [0]


def test_without_prefix_space(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(_variant(tmp_path, add_prefix_space=False))
    assert tokenizer.encode("USER:", add_bos=False) == [337, 495]


@settings(deadline=None)
@given(text=_TEXTS)
def test_the_installed_transformers_reads_plain_words_alike(text: str) -> None:
    # Its tokenizer is the fast one by now, which differs from the slow one in special tokens and leading spaces.
    text = re.sub(r"</?s>|<unk>|\u2581", "", text).lstrip(" ")
    assert _GOLDEN.encode(text, add_bos=True) == _transformers_tokenizer()(text).input_ids


def test_tokenizer_json_of_llama(tmp_path: Path) -> None:
    theirs = _transformers_tokenizer()
    theirs.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.model").unlink(missing_ok=True)
    ours = Tokenizer.load(tmp_path)
    assert (ours.bos_id, ours.eos_id, ours.pad_id, ours.vocab_size, ours.adds_bos) == (1, 2, 0, 512, True)
    for text in ("USER: hi", "</s>USER: What", "a b  c", "é 👍"):
        assert ours.encode(text, add_bos=True) == theirs(text).input_ids == _GOLDEN.encode(text, add_bos=True)
        assert ours.decode(theirs(text).input_ids) == text.replace("</s>", "")


@pytest.fixture(scope="module")
def byte_level(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.load(_byte_level(tmp_path_factory.mktemp("byte_level")))


def test_a_vocabulary_without_bos(byte_level: Tokenizer) -> None:
    assert byte_level.bos_id is None
    assert not byte_level.adds_bos
    assert byte_level.encode("car", add_bos=True) == byte_level.encode("car", add_bos=False)


@given(text=st.text())
def test_byte_level_decodes_to_itself(byte_level: Tokenizer, text: str) -> None:
    assert byte_level.decode(byte_level.encode(text, add_bos=False)) == text.replace("<|end|>", "")


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither tokenizer.model nor tokenizer.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer.json is no tokenizer.json"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"tokenizer.model is no sentencepiece model"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config.json cannot be read as JSON"):
        Tokenizer.load(tmp_path)


def test_what_is_not_served_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tokenizer_config.json sets add_eos_token.*; set it to false"):
        Tokenizer.load(_variant(tmp_path, add_eos_token=True))
    Tokenizer.load(_variant(tmp_path, add_eos_token=False))
    token = {"content": "car", "single_word": True}
    with pytest.raises(InputError, match=r"the added token 'car' is single_word, which is not served"):
        Tokenizer.load(_variant(tmp_path, added_tokens_decoder={"511": token}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"added_tokens_decoder": {"511": {}}}, "added_tokens_decoder.511: content must be a token's text, not None"),
        ({"added_tokens_decoder": {"511": "car"}}, "added_tokens_decoder.511 must be an object, not 'car'"),
        (
            {"added_tokens_decoder": {"car": {"content": "car"}}},
            "added_tokens_decoder must be a token's id, not 'car'",
        ),
        ({"added_tokens_decoder": []}, r"added_tokens_decoder must be a dict, not \[\]"),
        ({"bos_token": 3}, "bos_token must be a token's text, not 3"),
        ({"eos_token": {"text": "</s>"}}, "eos_token must be a token's text, not {"),
        ({"additional_special_tokens": 5}, "additional_special_tokens must be a list, not 5"),
        ({"additional_special_tokens": [None]}, "additional_special_tokens must be a token's text, not None"),
        (
            {"added_tokens_decoder": {"511": {"content": ""}}},
            "added_tokens_decoder.511: content must be a token's text",
        ),
        (
            {"added_tokens_decoder": {"511": {"content": "car", "lstrip": 0}}},
            "added_tokens_decoder.511: lstrip must be a bool, not 0",
        ),
        ({"added_tokens_decoder": {"-1": {"content": "car"}}}, "added_tokens_decoder must be a token's id, not '-1'"),
        ({"legacy": 0}, "legacy must be a bool, not 0"),
        ({"add_bos_token": "false"}, "add_bos_token must be a bool, not 'false'"),
    ],
)
def test_a_damaged_entry_is_named(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=f"tokenizer_config.json: {said}"):
        Tokenizer.load(_variant(tmp_path, **changes))


def test_an_added_token_without_a_number_is_named(tmp_path: Path) -> None:
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<image>": None}))
    with pytest.raises(InputError, match=r"added_tokens.json: <image> must be a token's id, not None"):
        Tokenizer.load(_variant(tmp_path))


@pytest.mark.parametrize("id", [2.5, True, -1, 10**30, float("inf"), "one"])
def test_an_id_that_is_none_is_named(tmp_path: Path, id: Any) -> None:
    _variant(tmp_path)
    (tmp_path / "added_tokens.json").write_text(json.dumps({"<image>": id}))
    with pytest.raises(InputError, match=r"added_tokens.json: <image> must be a token's id, not "):
        Tokenizer.load(tmp_path)


def test_two_added_tokens_with_one_id(tmp_path: Path) -> None:
    _variant(tmp_path, added_tokens_decoder={"511": {"content": "car"}})
    (tmp_path / "added_tokens.json").write_text('{"<image>": 511}')
    with pytest.raises(InputError, match=r"added_tokens.json: <image> has the id 511, which is that of car"):
        Tokenizer.load(tmp_path)


def test_a_begin_of_text_that_the_vocabulary_lacks(tmp_path: Path) -> None:
    """Prompts had begun without one."""
    with pytest.raises(InputError, match=r"tokenizer.model has no token '<begin>', which .* name as bos_token"):
        Tokenizer.load(_variant(tmp_path, bos_token="<begin>"))
    Tokenizer.load(_variant(tmp_path, bos_token="<begin>", add_bos_token=False))


_BEGINS_WITH_NOTHING = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "gone", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"post_processor": _BEGINS_WITH_NOTHING}, "is no tokenizer.json"),
        ({"model": {"type": "BPE", "vocab": {"<s>": 0, "\u2581": 1}, "merges": []}}, "is byte-level, but "),
    ],
)
def test_a_tokenizer_json_that_its_library_stops_at(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    _byte_level(tmp_path)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<|end|>", "eos_token": "<|end|>"}')
    with pytest.raises(InputError, match=f"tokenizer.json {said}"):
        Tokenizer.load(tmp_path)
