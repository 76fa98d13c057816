"""`dynllava generate --batch`: a file of requests, what is written of it, and how a stopped one goes on."""

import json
import os
import resource
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dynllava_jax.cli import generate_batch
from dynllava_jax.cli.main import main
from dynllava_jax.cli.output import json_lines
from dynllava_jax.demo.pictures import sample
from dynllava_jax.errors import InputError
from dynllava_jax.inference.assistant import Assistant
from tests.cli.test_generate import KEYS, ask

pytestmark = pytest.mark.usefixtures("one_load")


def test_batch_answers_in_order_and_names_the_bad_line(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        {"image": "sample:cat", "question": "What?", "max_new_tokens": 3},
        {"image": "missing.jpg", "question": "What?"},
        {"question": "No picture at all?", "max_new_tokens": 3},
        {"question": "Key?", "colour": "red"},
        {"question": "Both?", "image": "sample:cat", "images": ["sample:cat"]},
        {"question": "Lines\u2028apart?", "max_new_tokens": 3, "seed": None},
    ]
    file = tmp_path / "batch.jsonl"
    texts = [json.dumps(line, ensure_ascii=False) for line in lines]
    # As Windows writes it, with a byte order mark.
    file.write_text("\r\n".join([*texts, "", "no json", '{"question": ' + "[" * 100_000, ""]), "utf-8-sig")
    assert main(["generate", "--model", str(checkpoint), "--batch", str(file)]) == 2
    out, err = capsys.readouterr()
    answers = [json.loads(line) for line in out.splitlines()]
    assert [set(answer) == KEYS for answer in answers] == [True, False, True, False, False, True, False, False]
    assert "missing.jpg" in answers[1]["error"]
    assert "line 4" in answers[3]["error"]
    assert "colour" in answers[3]["error"]
    assert "image and images" in answers[4]["error"]
    assert "line 8" in answers[6]["error"]
    assert "line 9: is no JSON" in answers[7]["error"]
    assert err.startswith(f"dynllava: error: --batch {file}: 5 of 8 requests were bad")
    assert "missing.jpg" in err

    assert main(ask(checkpoint, "--max-new-tokens", "3", "--json")) == 0
    alone = json.loads(capsys.readouterr().out)
    assert alone["token_ids"] == answers[0]["token_ids"]


def test_pictures_of_a_piped_batch_are_relative_to_the_current_folder(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(sample("cat").path, tmp_path / "cat.jpg")
    monkeypatch.chdir(tmp_path)
    reading, writing = os.pipe()
    with open(reading), open(writing, "w") as pipe:
        pipe.write('{"image": "cat.jpg", "question": "What?", "max_new_tokens": 3}\n')
        pipe.close()
        assert main(["generate", "--model", str(checkpoint), "--batch", f"/dev/fd/{reading}"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == KEYS


def questions(folder: Path, count: int) -> Path:
    """A file of LLaVA's, its pictures in a folder of their own."""
    (folder / "pictures").mkdir()
    shutil.copy(sample("cat").path, folder / "pictures" / "cat.jpg")
    file = folder / "questions.jsonl"
    lines = [
        {"question_id": number, "image": "cat.jpg", "text": f"What {number}?", "category": "all"}
        for number in range(count)
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_llavas_questions_get_what_its_scoring_scripts_read(checkpoint: Path, tmp_path: Path) -> None:
    file, out = questions(tmp_path, 3), tmp_path / "answers.jsonl"
    command = ["generate", "--model", str(checkpoint), "--batch", str(file), "--max-new-tokens", "3"]
    assert main([*command, "--image-folder", str(tmp_path / "pictures"), "--json", str(out)]) == 0
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [set(answer) for answer in answers] == [KEYS | {"question_id", "category", "prompt"}] * 3
    assert [(answer["question_id"], answer["prompt"]) for answer in answers] == [(n, f"What {n}?") for n in range(3)]
    assert [len(answer["kept_image_tokens"]) for answer in answers] == [1] * 3


def test_science_qa_is_asked_as_llava_asks_it(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(sample("cat").path, tmp_path / "cat.jpg")
    turns = [{"from": "human", "value": "Context: one.\nWhich?\n<image>"}, {"from": "gpt", "value": "A."}]
    samples = [
        {"id": "4", "image": "cat.jpg", "conversations": turns},
        {"id": "7", "conversations": turns[:1]},
        {"id": "8", "conversations": []},
    ]
    file, out = tmp_path / "test.json", tmp_path / "answers.jsonl"
    file.write_text(json.dumps(samples, indent=1))
    asked = []
    answer_batch = Assistant.generate_batch

    def told(self: Assistant, requests: list, **options: object) -> list:
        asked.extend(requests)
        return answer_batch(self, requests, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Assistant, "generate_batch", told)
    command = ["generate", "--model", str(checkpoint), "--batch", str(file), "--max-new-tokens", "2"]
    assert main([*command, "--suffix", "Answer with a letter.", "--json", str(out)]) == 2
    assert f"{file} sample 3: needs an id" in capsys.readouterr().err
    text = "Context: one.\nWhich?\nAnswer with a letter."
    assert [(request.question, len(request.images)) for request in asked] == [(f"<image>\n{text}", 1), (text, 0)]
    answers = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(answer.get("question_id"), answer.get("prompt")) for answer in answers] == [
        ("4", f"<image>\n{text}"),
        ("7", text),
        (None, None),
    ]


@pytest.mark.slow
def test_a_stopped_batch_goes_on_to_the_same_answers(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(generate_batch, "_BATCHES", 1)
    file = questions(tmp_path, 5)

    def command(out: Path, *more: str) -> list[str]:
        folder = ("--image-folder", str(tmp_path / "pictures"))
        return [
            *ask(checkpoint)[:3],
            "--batch",
            str(file),
            *folder,
            "--max-new-tokens",
            "3",
            "--rows",
            "2",
            "--json",
            str(out),
            *more,
        ]

    whole, out = tmp_path / "whole.jsonl", tmp_path / "answers.jsonl"
    assert main(command(whole, "--continue")) == 0  # from the beginning: nothing is there yet

    asked = []
    answer_batch = Assistant.generate_batch

    def stopped(self: Assistant, requests: list, **options: object) -> list:
        if asked:
            raise KeyboardInterrupt
        asked.extend(requests)
        return answer_batch(self, requests, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Assistant, "generate_batch", stopped)
    assert main(command(out)) == 130
    assert f"{out} holds the first 2 of 5 answers; --continue goes on from there" in capsys.readouterr().err
    with out.open("a") as file_of_answers:
        file_of_answers.write('{"question_id": 2, "te')  # as a killed one leaves it

    def told(self: Assistant, requests: list, **options: object) -> list:
        asked.extend(requests)
        return answer_batch(self, requests, **options)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(Assistant, "generate_batch", told)
    assert main(command(out, "--continue")) == 0
    assert [request.question for request in asked] == [f"What {number}?" for number in range(5)]

    def texts(file: Path) -> list[tuple[int, str]]:
        return [(line["question_id"], line["text"]) for line in map(json.loads, file.read_text().splitlines())]

    assert texts(out) == texts(whole)
    del asked[:]
    assert main(command(out, "--continue")) == 0  # all are there
    assert not asked

    file.write_text(file.read_text().replace("What 3?", "Who?"))
    assert main(command(out, "--continue")) == 2
    assert "line 4 answers prompt 'What 3?', where" in capsys.readouterr().err
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:4]))
    assert main(command(out, "--continue")) == 2
    assert "holds 5 answers" in capsys.readouterr().err
    out.write_text("not one\n")
    assert main(command(out, "--continue")) == 2
    assert "does not hold answers to go on from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--batch", "FILE", "--continue"], "--continue needs --json FILE"),
        (["--batch", "FILE", "--image-folder", "nowhere"], "--image-folder nowhere is no folder"),
        (["--continue"], "--continue belongs to --batch"),
        (["--image-folder", "."], "--image-folder belongs to --batch"),
        (["--rows", "2"], "--rows belongs to --batch"),
        (["--suffix", "Answer."], "--suffix belongs to --batch"),
        (["--batch", "FILE", "--rows", "0"], "--rows must be 1 or more, not 0"),
    ],
)
def test_options_that_need_another(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = questions(tmp_path, 1)
    assert main(["generate", *(str(file) if option == "FILE" else option for option in options)]) == 2
    assert said in capsys.readouterr().err


def test_what_a_line_may_not_say_twice(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "batch.jsonl"
    file.write_text('{"question_id": 7, "text": "What?", "question": "Who?"}\n')
    assert main(["generate", "--model", str(checkpoint), "--batch", str(file)]) == 2
    out, err = capsys.readouterr()
    assert json.loads(out)["question_id"] == 7
    assert "has both question and text" in err


def test_answers_for_which_there_is_no_room_leave_the_others_whole(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text("of an earlier run\n")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with json_lines(str(file)) as write:
        write([{"text": "one"}])
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        try:
            with pytest.raises(InputError, match=r"cannot be written: File too large; .* \(--continue goes on\)"):
                write([{"text": "long " * 50}])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        write([{"text": "two"}])
    with json_lines(str(file), keep=True) as write:
        write([{"text": "three"}])
    assert [json.loads(line)["text"] for line in file.read_text().splitlines()] == ["one", "two", "three"]


def test_a_pipe_is_opened_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(1) as pool:
        text = pool.submit(pipe.read_text)
        with json_lines(str(pipe)) as write:
            write([{"text": "one"}])
            write([{"text": "two"}])
        assert text.result(timeout=30) == '{"text": "one"}\n{"text": "two"}\n'
