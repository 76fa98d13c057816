"""The public face: what comes back, what is refused, and that a batch, a stream and a thread change nothing."""

import dataclasses
import io
import os
import sys
import threading
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import dynllava_jax as dl
from dynllava_jax.config.presets import get_preset
from dynllava_jax.demo.pictures import sample
from dynllava_jax.inference import memory
from dynllava_jax.inference.assistant import Assistant
from dynllava_jax.inference.buckets import Shape
from dynllava_jax.inference.load import parameter_bytes
from dynllava_jax.inference.memory import check_fits, free_bytes
from dynllava_jax.inference.sampling import Temperature
from dynllava_jax.testing import synthetic_image, tiny_assistant

QUESTION = "What is in the left of the picture?"


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return tiny_assistant()


def test_an_answer_says_what_was_kept(assistant: Assistant) -> None:
    answer = assistant.generate(synthetic_image(1), QUESTION, max_new_tokens=10)
    assert len(answer.token_ids) == len(answer.kept_output_tokens) <= 10
    assert answer.kept_output_tokens[-1] is None
    (patches,) = answer.kept_image_tokens
    assert len(patches) == assistant.config.kept_image_tokens == 6
    assert patches == sorted(set(patches))
    kept = sum(keep or 0 for keep in answer.kept_output_tokens)
    fed = len(answer.token_ids) - 1
    assert answer.cache_tokens["shallow"] - answer.cache_tokens["deep"] == 16 - 6 + fed - kept
    assert set(answer.seconds) == {"prefill", "decode"}
    assert answer.as_dict()["text"] == answer.text == assistant.tokenizer.decode(answer.token_ids)


def test_dense_keeps_everything_and_text_needs_no_picture(assistant: Assistant) -> None:
    dense = assistant.generate(synthetic_image(1), QUESTION, max_new_tokens=5, dense=True)
    assert dense.kept_image_tokens == [list(range(16))]
    assert set(dense.kept_output_tokens[:-1]) <= {1}
    assert dense.cache_tokens["shallow"] == dense.cache_tokens["deep"]
    assert assistant.generate(None, QUESTION, max_new_tokens=5).kept_image_tokens == []


def test_a_picture_may_come_in_any_form(assistant: Assistant, tmp_path: Path) -> None:
    picture = synthetic_image(2)
    file, data = tmp_path / "picture.png", io.BytesIO()
    picture.save(file)
    picture.save(data, "PNG")
    forms: list[Any] = [picture, file, str(file), data.getvalue(), np.asarray(picture)]
    answers = [assistant.generate(form, QUESTION, max_new_tokens=4) for form in forms]
    assert all(answer.token_ids == answers[0].token_ids for answer in answers)
    assert all(answer.kept_image_tokens == answers[0].kept_image_tokens for answer in answers)


def test_a_tokenizer_that_knows_more_than_the_model_is_noticed(assistant: Assistant) -> None:
    decoder = dataclasses.replace(assistant.config.decoder, vocab_size=100)
    small = dataclasses.replace(assistant.prepare, config=dataclasses.replace(assistant.config, decoder=decoder))
    with pytest.raises(dl.InputError, match=r"has the token \d+, but the model knows 100"):
        small(dl.Request(QUESTION))


@pytest.mark.slow
def test_one_bad_request_fails_alone(assistant: Assistant) -> None:
    def ask(question: str = QUESTION, images: Any = (), **wishes: Any) -> dl.Request:
        return dl.Request(question, images, **dict[str, Any](max_new_tokens=4) | wishes)

    good = [ask(images=[synthetic_image(1)]), ask(images=[synthetic_image(2), synthetic_image(3)]), ask()]
    bad = [
        ask(images=["nowhere.jpg"]),
        ask("<image><image> compare", images=[synthetic_image(1)]),
        ask("word " * 900),
        ask(max_new_tokens=5000),
        ask(images=[synthetic_image(i) for i in range(3)]),
    ]
    mixed = assistant.generate_batch([good[0], *bad[:3], good[1], *bad[3:], good[2]])
    assert [isinstance(result, dl.InputError) for result in mixed] == [False, *[True] * 3, False, True, True, False]
    for place, request in zip((0, 4, 7), good, strict=True):
        (alone,) = assistant.generate_batch([request])
        assert isinstance(alone, dl.Answer)
        result = mixed[place]
        assert isinstance(result, dl.Answer)
        assert result.token_ids == alone.token_ids
    with pytest.raises(dl.InputError, match=r"nowhere\.jpg"):
        assistant.generate("nowhere.jpg", QUESTION)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    "wishes",
    [
        *({"max_new_tokens": tokens} for tokens in (0, "5", 5.5, True, float("nan"))),
        *({"seed": seed} for seed in (-1, 2**32, "7", None, 1.5)),
        *({"question": question} for question in ("  ", None, b"What?", "half a \ud83d")),
        *({"sampler": sampler} for sampler in (None, "greedy", 0.7, dl.TopP)),
    ],
    ids=lambda wishes: ascii(wishes),
)
def test_impossible_wishes_are_refused(wishes: dict[str, Any]) -> None:
    """Named, and none of them is taken for greedy or for a smaller number without a word."""
    with pytest.raises(dl.InputError, match=next(iter(wishes))):
        dl.Request(**dict[str, Any](question=QUESTION) | wishes)


@pytest.mark.usefixtures("unchecked")
def test_numbers_of_numpy_are_numbers(assistant: Assistant) -> None:
    own = dl.Request(QUESTION, max_new_tokens=3, seed=7, sampler=Temperature())
    numpy = dataclasses.replace(own, max_new_tokens=np.int64(3), seed=np.uint32(7))
    ours, theirs = assistant.generate_batch(request for request in (own, numpy))
    assert isinstance(ours, dl.Answer)
    assert isinstance(theirs, dl.Answer)
    assert ours.token_ids == theirs.token_ids


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_request_and_no_picture_is_named(assistant: Assistant) -> None:
    (refused,) = assistant.generate_batch([QUESTION])  # pyright: ignore[reportArgumentType]
    assert "must be a dynllava_jax.Request, not a str" in str(refused)
    with pytest.raises(dl.InputError, match="put it into a list"):
        assistant.generate_batch(dl.Request(QUESTION))  # pyright: ignore[reportArgumentType]
    with pytest.raises(dl.InputError, match="generate_batch takes a list of requests, not None"):
        assistant.generate_batch(None)  # pyright: ignore[reportArgumentType]
    for data in (bytearray(b"no picture"), memoryview(b"no picture")):
        with pytest.raises(dl.InputError, match=r"10 bytes|memoryview"):
            assistant.generate(data, QUESTION)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("value", ["no", 0, None])
def test_a_switch_is_on_or_off(assistant: Assistant, value: Any) -> None:
    """A "false" out of a web form would be taken for true."""
    picture = synthetic_image(1)
    for ask in (assistant.generate, assistant.explain, assistant.stream):
        for name in ("dense", "use_cache"):
            with pytest.raises(dl.InputError, match=f"{name} must be True or False, not {value!r}"):
                ask(picture, QUESTION, **{name: value})
    for start in (assistant.chat, assistant.warmup):
        with pytest.raises(dl.InputError, match="dense must be True or False"):
            start(dense=value)
    switches: list[Any] = [np.bool_(True), True]
    numpy, python = (assistant.generate(picture, QUESTION, max_new_tokens=3, dense=on) for on in switches)
    assert numpy.token_ids == python.token_ids


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("every", [0, -1, 1.5, "4"])
def test_a_stream_that_would_never_look_is_refused(assistant: Assistant, every: Any) -> None:
    with pytest.raises(dl.InputError, match="every must be a whole number, 1 or more"):
        assistant.stream(None, QUESTION, every=every)
    with pytest.raises(dl.InputError, match="every must be a whole number, 1 or more"):
        assistant.chat().stream(QUESTION, every=every)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        ([(4, 2)], r"Each of warmup's shapes must be Shape, not \(4, 2\)"),
        (5, "warmup's shapes must be Iterable or None, not 5"),
        (Shape(1, 0, 64, 64, 16), r"warmup's shapes must be Iterable or None, not Shape\("),
    ],
    ids=("tuple", "number", "shape"),
)
def test_warmup_names_what_is_no_shape(assistant: Assistant, shapes: Any, words: str) -> None:
    with pytest.raises(dl.InputError, match=words):
        assistant.warmup(shapes)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": None}, "model must be str or PathLike, not None"),
        ({"model": "s3://bucket/model"}, "s3://bucket/model needs a package for its kind of address"),
        ({"mesh": {"data": 1}}, "mesh must be str or Mesh or None"),
        ({"device": 0}, "device must be str or None"),
        ({"device": ""}, "device is empty; name one, or leave it out"),
        ({"output_keep": "no"}, "output_keep must be bool"),
        ({"template": 5}, "template must be str or None"),
        ({"sparsity": dl.SparsityConfig()}, "sparsity must be Mapping or None"),
        ({"sparsity": {5: 1, "keep": 0.2}}, "sparsity has no field 5; there are sparse_layer"),
        ({"buckets": {"rows": (1,)}}, "buckets must be Buckets or None"),
        ({"attention": ()}, "attention names no implementation"),
        ({"attention": 5}, "attention must be str or Sequence or None"),
        ({"attention": ("nope", "xla")}, "no implementation 'nope'"),
        ({"products": ["triton"]}, "products must be str or None"),
        ({"model": "nowhere", "products": "fast"}, "products has no implementation 'fast'"),
        ({"dtype": np.float32}, "dtype <class 'numpy.float32'> is unknown"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_load_names_an_option_that_is_none(
    options: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(dl.InputError, match=words):
        dl.load(**options)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("question", ["a" * 1000 + "\ud800", b"a" * 1000])
def test_a_long_question_is_not_quoted_whole(question: Any) -> None:
    with pytest.raises(dl.InputError, match=r"The question .* … \(1\d\d\d characters\)") as caught:
        dl.Request(question)
    assert len(str(caught.value)) < 250


def test_a_stream_is_the_answer_in_pieces(assistant: Assistant) -> None:
    whole = assistant.generate(synthetic_image(1), QUESTION, max_new_tokens=12)
    for every in (1, 5):
        stream = assistant.stream(synthetic_image(1), QUESTION, max_new_tokens=12, every=every)
        assert stream.answer is None
        assert "".join(stream) == whole.text
        assert stream.answer is not None
        assert stream.answer.token_ids == whole.token_ids
        assert stream.answer.kept_output_tokens == whole.kept_output_tokens


def test_a_stream_can_be_cancelled(assistant: Assistant) -> None:
    stream = assistant.stream(synthetic_image(1), QUESTION, max_new_tokens=12, every=1)
    next(stream)
    stream.cancel()
    assert list(stream) == []
    assert stream.answer is not None
    assert 0 < len(stream.answer.token_ids) < 12
    assert assistant.generate(synthetic_image(1), QUESTION, max_new_tokens=3).token_ids


def test_threads_get_the_answers_they_get_alone(assistant: Assistant) -> None:
    def one(number: int) -> list[int]:
        sampler = Temperature(1.0)
        if number % 3 == 0:
            return assistant.generate(synthetic_image(number), QUESTION, max_new_tokens=6, sampler=sampler).token_ids
        if number % 3 == 1:
            stream = assistant.stream(synthetic_image(number), QUESTION, max_new_tokens=6, sampler=sampler, every=2)
            for _ in stream:
                pass
            assert stream.answer is not None
            return stream.answer.token_ids
        chat = assistant.chat(synthetic_image(number))
        first = chat.ask(QUESTION, max_new_tokens=6, sampler=sampler).token_ids
        return first + chat.ask("And right?", max_new_tokens=4).token_ids

    alone = [one(number) for number in range(6)]
    together: dict[int, list[int]] = {}
    threads = [threading.Thread(target=lambda n=n: together.update({n: one(n)})) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [together[number] for number in range(6)] == alone


def test_the_demo_model_and_the_options_of_load() -> None:
    model = dl.load("demo", keep_rate=0.5, output_keep=False, template="llava_v1", selector="stride")
    assert model.scenes_only
    assert model.config.kept_image_tokens == 288
    assert model.config.sparsity.output_selector is None
    assert model.config.sparsity.image_selector == "stride"
    assert model.config.text_prep.template == "llava_v1"
    (patches,) = model.generate(sample("cat").path, QUESTION, max_new_tokens=2).kept_image_tokens
    assert len(patches) == 288


def test_the_default_device_is_where_a_model_goes() -> None:
    """How somebody puts one model on each of several devices."""
    second = jax.devices()[1]
    with jax.default_device(second):
        there = dl.load("demo")
        meshed = dl.load("demo", mesh="fsdp=2")
    assert {device for leaf in jax.tree.leaves(there.engine.model) for device in leaf.devices()} == {second}
    assert meshed.engine.mesh is not None
    assert list(meshed.engine.mesh.devices.flat) == jax.devices()[:2]
    assert there.generate(None, QUESTION, max_new_tokens=2).token_ids
    with jax.default_device("cpu"):
        assert jax.tree.leaves(dl.load("demo").engine.model)[0].devices() == {jax.devices()[0]}


def test_too_little_memory_is_said_before_anything_is_loaded() -> None:
    with pytest.raises(dl.InputError, match=r"needs 1048576\.00 GiB.*GiB free"):
        check_fits("giant", 2**50, jax.devices()[:1])


def test_each_copy_of_the_parameters_needs_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    one = parameter_bytes(get_preset("demo"), "float32")
    monkeypatch.setattr(memory, "free_bytes", lambda devices: one * 3 // 2)
    with pytest.raises(dl.InputError, match="for the 2 copies of its parameters that data=2 asks for"):
        dl.load("demo", mesh="data=2,fsdp=2", dtype="float32")
    assert dl.load("demo", mesh="fsdp=2", dtype="float32").engine.mesh is not None


def test_a_system_that_does_not_tell_its_free_memory_loads_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """On macOS Python knows no SC_AVPHYS_PAGES."""
    known = os.sysconf

    def sysconf(name: str) -> int:
        if name == "SC_AVPHYS_PAGES":
            raise ValueError("unrecognized configuration name")
        return known(name)

    monkeypatch.setattr(os, "sysconf", sysconf)
    assert free_bytes(jax.devices("cpu")) is None
    assert dl.load("demo").scenes_only
