"""`dynllava generate`, `chat`, `samples`, `doctor`: what a user types and what comes back."""

import io
import json
import signal
from pathlib import Path

import pytest

from dynllava_jax.cli.main import main
from dynllava_jax.demo.pictures import sample
from dynllava_jax.inference.assistant import Assistant
from dynllava_jax.inference.run import Run

pytestmark = pytest.mark.usefixtures("one_load")

KEYS = {"text", "token_ids", "kept_image_tokens", "kept_output_tokens", "cache_tokens", "seconds"}


def ask(checkpoint: Path, *more: str) -> list[str]:
    return ["generate", "--model", str(checkpoint), "--image", "sample:cat", "--question", "What?", *more]


def test_json_stands_alone_on_stdout(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(ask(checkpoint, "--max-new-tokens", "5", "--json")) == 0
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == KEYS
    assert len(answer["token_ids"]) == len(answer["kept_output_tokens"]) <= 5
    assert [len(kept) for kept in answer["kept_image_tokens"]] == [6]  # int(16 · 0.4)
    assert answer["kept_output_tokens"][-1] is None
    assert set(answer["kept_output_tokens"][:-1]) <= {0, 1}
    kept = sum(keep for keep in answer["kept_output_tokens"][:-1])
    fed = len(answer["token_ids"]) - 1
    # The deep stack lacks 10 of 16 image tokens, the dropped answer tokens, and here some of the instruction.
    assert answer["cache_tokens"]["shallow"] - answer["cache_tokens"]["deep"] >= 10 + fed - kept


def test_plain_text_streaming_and_json_agree(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--max-new-tokens", "5")
    outputs = []
    for style in ([], ["--stream"], ["--json"]):
        assert main(ask(checkpoint, *more, *style)) == 0
        outputs.append(capsys.readouterr().out)
    text = json.loads(outputs[2])["text"]
    assert outputs[0] == outputs[1] == text + "\n"


def test_json_into_a_file(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "answer.json"
    assert main(ask(checkpoint, "--max-new-tokens", "2", "--json", str(file))) == 0
    assert set(json.loads(file.read_text())) == KEYS
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["generate", "--image", "no.png", "--question", "What?"], "The image 'no.png' does not exist"),
        (["generate", "--question", "What?", "--max-new-tokens", "0"], "max_new_tokens must be a whole number"),
        (["generate", "--question", " "], "--question is missing"),
        (["show", "kept", "--image", "no.png", "--question", "What?"], "The image 'no.png' does not exist"),
        (["show", "kept", "--seed", "-1"], "seed must be a whole number"),
        (["chat", "--image", "no.png"], "The image 'no.png' does not exist"),
        (["chat", "--max-new-tokens", "-3"], "max_new_tokens must be a whole number"),
    ],
)
def test_what_is_wrong_with_a_question_is_said_before_a_model_is_loaded(
    command: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("What?\n"))
    assert main([*command, "--model", "there_is_none"]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_modes_change_what_is_kept(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def kept(*more: str) -> tuple[int, list[int | None]]:
        assert main(ask(checkpoint, "--max-new-tokens", "4", "--json", *more)) == 0
        answer = json.loads(capsys.readouterr().out)
        return len(answer["kept_image_tokens"][0]), answer["kept_output_tokens"]

    assert kept("--dense") == (16, [1, 1, 1, None])
    assert kept("--keep-rate", "0.5")[0] == 8
    assert kept("--output-keep", "off")[1] == [1, 1, 1, None]
    assert kept("--no-cache") == kept()


def test_chat_is_a_conversation(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("What?\nAnd then?\n\nnever asked\n"))
    chat = ["chat", "--model", str(checkpoint), "--image", "sample:cat", "--max-new-tokens", "3"]
    assert main(chat) == 0
    first = capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", io.StringIO("What?\n"))
    assert main(chat) == 0
    assert first.startswith(capsys.readouterr().out)


@pytest.mark.parametrize("terminal", [True, False])
def test_a_refused_question_ends_a_chat_only_where_nobody_can_ask_again(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, terminal: bool
) -> None:
    typed = io.StringIO("<image> two?\nOne?\n")
    monkeypatch.setattr(typed, "isatty", lambda: terminal)
    monkeypatch.setattr("sys.stdin", typed)
    chat = ["chat", "--model", str(checkpoint), "--image", "sample:cat", "--image", "sample:cat"]
    assert main([*chat, "--max-new-tokens", "3"]) == (0 if terminal else 2)
    out, err = capsys.readouterr()
    assert "1 <image> but 2 images" in err
    assert bool(out) == terminal


def test_the_first_interrupt_ends_an_answer_and_the_second_the_chat(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the middle of a step: a KeyboardInterrupt there would leave a cache that nobody knows."""
    monkeypatch.setattr("sys.stdin", io.StringIO("What?\nAnd then?\n"))
    real, presses = Run.advance, iter([1, 0, 2])

    def advance(run: Run, steps: int | None = None) -> list[list[int]]:
        news = real(run, steps)
        for _ in range(next(presses)):
            signal.raise_signal(signal.SIGINT)
        return news

    monkeypatch.setattr(Run, "advance", advance)
    chat = ["chat", "--model", str(checkpoint), "--image", "sample:cat", "--max-new-tokens", "12", "--temperature", "2"]
    before = signal.getsignal(signal.SIGINT)
    assert main(chat) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().out.count("\n") >= 1
    assert next(presses, None) is None


@pytest.mark.parametrize("own", [True, False])
def test_a_foreign_picture_is_told_wherever_it_is_asked_about(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    always = property(lambda self: True, lambda self, value: None)
    monkeypatch.setattr(Assistant, "scenes_only", always, raising=False)
    image = str(sample("sunset").path) if own else "sample:cat"
    (tmp_path / "asked.jsonl").write_text(
        f"{json.dumps({'image': image, 'question': 'What?', 'max_new_tokens': 2})}\n"
        '{"image": "sample:sunset", "question": "What?", "max_new_tokens": 2}\n'
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("What?\nAnd then?\n"))
    model = ["--model", str(checkpoint), "--max-new-tokens", "2"]
    for command in (["generate", *model, "--batch", str(tmp_path / "asked.jsonl")], ["chat", *model, "--image", image]):
        assert main(command) == 0
        assert capsys.readouterr().err.count("knows only its own scenes") == (not own)


def test_samples_exist_and_doctor_reports(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["samples", "--json"]) == 0
    samples = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(Path(sample["path"]).is_file() for sample in samples)
    assert {one["name"] for one in samples if not one["scene"]} == {"cat", "coffee", "rocket", "astronaut"}
    assert main(["samples"]) == 0
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == [*4 * ["scene"], *4 * ["photograph"]]
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["packages"]["jax"]
    assert report["kernels"]["attention"] == ["xla"]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.startswith("dynllava_jax ")
