"""Sources joined: what is left out is counted, what is broken is named, what is held out is apart."""

import dataclasses
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynllava_jax.config.data import DataConfig
from dynllava_jax.data.conversation import tokenize_conversation
from dynllava_jax.data.dataset import Dataset, open_dataset
from dynllava_jax.data.records import Record, SampleError
from dynllava_jax.data.spans import IGNORE, Kind
from dynllava_jax.data.templates import Turn, get_template
from dynllava_jax.errors import InputError
from tests.data.memory_source import IMAGE_TOKENS, PREP, MemorySource, make_dataset, preparation, tokenizer

_FIRST = MemorySource(images=(1, 0, 2, 1), words=(3, 5, 1, 400), name="first")
_SECOND = MemorySource(images=(0, 1, 1), words=(2, 7, 0), name="second")


def _ids(dataset: Dataset) -> list[str]:
    return [dataset.load(number).id for number in range(len(dataset))]


def test_sources_are_joined_and_what_is_left_out_is_counted(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, _FIRST, _SECOND, on_error="skip", max_skipped=0.5)
    assert _ids(dataset) == ["first-0", "first-2", "first-3", "second-1"]
    assert dataset.source_of.tolist() == [0, 0, 0, 1]
    assert dataset.image_counts.tolist() == [1, 2, 1, 1]
    assert str(dataset.report) == (
        "4 of 7 samples, 1 of them cut at data.max_length; left out: 2 without image, 1 malformed record"
    )
    assert make_dataset(tmp_path, _FIRST, require_image=False).report.used == 4


def test_load_gives_what_the_plan_was_told(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, _FIRST)
    for number in range(len(dataset)):
        id, sample, pixels = dataset.load(number)
        assert sample.length == dataset.lengths[number]
        assert sample.image_count == len(pixels) == dataset.image_counts[number]
        assert {image.shape for image in pixels} == {(8, 8, 3)}
        assert id.startswith("first-")


def test_a_dataset_reaches_a_worker_process(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, _FIRST)
    there = pickle.loads(pickle.dumps(dataset))
    assert there.fingerprint == dataset.fingerprint
    np.testing.assert_array_equal(there.load(1).sample.tokens, dataset.load(1).sample.tokens)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"Sample 'second-2': malformed record .*; of 3 samples 1 cannot be used: .*data.on_error='skip'"),
        ({"on_error": "skip"}, "of 3 samples 1 cannot be used, more than data.max_skipped 0.01"),
    ],
)
def test_samples_that_cannot_be_used_stop_the_run(tmp_path: Path, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_dataset(tmp_path, _SECOND, **options)


def test_where_no_sample_is_left_it_is_said_why(tmp_path: Path) -> None:
    """It was said of `data.source`, which held some, and of `eval.source` too."""
    message = (
        r"^texts: no sample is left: 0 of 2 samples, 0 of them cut at data.max_length; left out: 2 without image; "
        r"data.require_image=False takes samples without an image too\.$"
    )
    with pytest.raises(InputError, match=message):
        make_dataset(tmp_path, MemorySource((0, 0), (2, 3), name="texts"))


def test_held_out_samples_come_from_the_end_of_every_source(tmp_path: Path) -> None:
    sources = [MemorySource((1,) * size, (1,) * size, name=name) for name, size in (("a", 6), ("b", 3))]
    train, held = make_dataset(tmp_path, *sources).hold_out(3)
    assert _ids(held) == ["a-4", "a-5", "b-2"]
    assert _ids(train) == ["a-0", "a-1", "a-2", "a-3", "b-0", "b-1"]
    assert train.fingerprint != held.fingerprint
    with pytest.raises(InputError, match=r"eval.samples 9 leaves none of the 9 samples"):
        make_dataset(tmp_path, *sources).hold_out(9)


def test_the_fingerprint_follows_content_order_and_selection(tmp_path: Path) -> None:
    def fingerprint(*sources: MemorySource, **options: Any) -> str:
        return make_dataset(tmp_path, *sources, **options).fingerprint

    other = MemorySource(images=(1, 1), words=(2, 7), name="second")
    known = {fingerprint(_FIRST, other), fingerprint(other, _FIRST), fingerprint(_FIRST)}
    assert len(known | {fingerprint(_FIRST, require_image=False)}) == 4
    assert fingerprint(_FIRST) in known


def test_a_json_file_and_its_pictures(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(
        '[{"id": "x", "image": "none.jpg", "conversations": [{"from": "human", "value": "<image>\\nWhat?"}, '
        '{"from": "gpt", "value": "A cat."}]}]'
    )
    config = DataConfig(source=str(tmp_path / "a.json"), images=str(tmp_path), workers=0)
    dataset = open_dataset(config, tokenizer(), get_template("vicuna_v1"), IMAGE_TOKENS, PREP)
    assert len(dataset) == 1
    assert [file.suffix for file in sorted(tmp_path.iterdir())] == [".json", ".npz"]
    with pytest.raises(SampleError, match="Sample 'x': missing image"):
        dataset.load(0)
    with pytest.raises(InputError, match=r"data.source names nothing"):
        open_dataset(DataConfig(), tokenizer(), get_template("vicuna_v1"), IMAGE_TOKENS, PREP)


def test_the_answer_of_a_cut_sample_is_the_last_one_among_its_first_ids() -> None:
    """As in the official code, whose collator cuts the ids before `prepare_inputs_labels_for_multimodal` sees them."""
    turns = [Turn(question, " ".join(["cat"] * 9)) for question in ("<image>\nWhat is it?", "And this?", "And that?")]
    record = Record("x", ("a.png",), tuple(turns))
    whole = tokenize_conversation(tokenizer(), get_template("vicuna_v1"), record)
    second, third = (np.flatnonzero((whole.labels != IGNORE) & (np.roll(whole.labels, 1) == IGNORE))[n] for n in (1, 2))
    slots = IMAGE_TOKENS - 1
    for cut, answer in ((second + 6, second), (third + 6, third), (third + 1, third), (third - 1, third - 1)):
        sample, length = preparation(int(cut)).sample(record)
        assert (sample.length, length) == (cut, len(whole.ids) + slots)
        assert np.sum(sample.kind == Kind.ANSWER) == max(cut - answer - slots, 0)
        question = int(np.flatnonzero(whole.labels[:answer] != IGNORE)[-1]) + 1
        assert np.sum(sample.kind == Kind.LAST_INSTRUCTION) == min(answer + slots, cut) - question - slots


def test_marks_behind_the_cut_make_a_bad_sample_too() -> None:
    record = Record("x", (), (Turn("What is it?", " ".join(["cat"] * 200)), Turn("q ASSISTANT: r", "cat")))
    assert preparation(200).sample(dataclasses.replace(record, turns=record.turns[:1]))[0].length == 200
    with pytest.raises(SampleError, match="no supervised token"):
        preparation(200).sample(record)


def test_truncation_is_after_the_image_and_never_through_it() -> None:
    record = MemorySource((2,), (50,)).record(0)
    whole, length = preparation().sample(record)
    assert whole.length == length
    cut, uncut = preparation(length - 3).sample(record)
    assert (cut.length, uncut) == (length - 3, length)
    assert (cut.kind == Kind.IMAGE).sum() == 2 * IMAGE_TOKENS
    last_slot = whole.image_starts[-1] + IMAGE_TOKENS
    answer = int(np.flatnonzero(whole.kind == Kind.ANSWER)[0])
    with pytest.raises(SampleError, match=r"an image would be cut at data.max_length"):
        preparation(last_slot - 1).sample(record)
    with pytest.raises(SampleError, match=rf"no supervised token .its {length} tokens are cut at {answer}"):
        preparation(answer).sample(record)
    with pytest.raises(SampleError, match=rf"longer than data.max_length .{length} tokens, 40 allowed"):
        preparation(40, truncate=False).sample(record)
    with pytest.raises(SampleError, match="more than 4 images"):
        preparation().sample(MemorySource((5,), (1,)).record(0))
