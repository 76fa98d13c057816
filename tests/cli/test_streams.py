"""What a closed pipe, a full disk, another locale and a missing home make of a command."""

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dynllava_jax.cli import samples
from dynllava_jax.cli.main import main
from dynllava_jax.cli.output import write_json

MAIN = ("-c", "import sys; from dynllava_jax.cli.main import main; sys.exit(main())")
TALKS = (
    "-c",
    """
import sys
from dynllava_jax.cli import main, samples
samples.run = lambda args: print(1, file=sys.stderr)
sys.exit(main.main(["samples"]))
""",
)
"""A command that speaks on stderr, as training does."""


def start(words: tuple[str, ...], unbuffered: str = "", **streams: Any) -> tuple[int, str]:
    """Exit status and stderr, where that is no stream of its own."""
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    options: dict[str, Any] = {"stderr": subprocess.PIPE} | streams
    done = subprocess.run([sys.executable, *words], env=environment, text=True, check=False, **options)
    return done.returncode, done.stderr or ""


def deserted() -> int:
    """A pipe that nobody reads."""
    reader, writer = os.pipe()
    os.close(reader)
    return writer


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", [("samples",), ("samples", "--json"), ("--help",), ("flops", "--help")])
def test_who_reads_stdout_may_have_had_enough(words: tuple[str, ...], unbuffered: str) -> None:
    assert start((*MAIN, *words), unbuffered, stdout=deserted()) == (0, "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_command_whose_messages_nobody_reads_is_not_done(unbuffered: str) -> None:
    """A launcher would take 0 for the last step."""
    assert start(TALKS, unbuffered, stderr=deserted())[0] == 141
    assert start(TALKS, unbuffered, stderr=deserted(), stdout=deserted())[0] == 141


def test_another_broken_pipe_is_an_error(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(args: object) -> int:
        raise BrokenPipeError("a worker is gone")

    monkeypatch.setattr(samples, "run", fail)
    assert main(["samples"]) == 1
    assert "BrokenPipeError: a worker is gone" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is full")
@pytest.mark.parametrize("words", [("samples",), ("samples", "--json"), ("--help",)])
def test_a_full_disk_behind_stdout(words: tuple[str, ...]) -> None:
    with open("/dev/full", "w") as full:
        line = "dynllava: error: stdout cannot be written: No space left on device.\n"
        assert start((*MAIN, *words), stdout=full) == (2, line)
        assert start((*MAIN, "samples", "--wrong"), stderr=full)[0] == 2


def test_half_a_file_is_not_left(tmp_path: Path) -> None:
    little_room = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))"
    file = tmp_path / "samples.json"
    status, said = start((MAIN[0], f"{little_room}; {MAIN[1]}", "samples", "--json", str(file)))
    assert (status, said) == (2, f"dynllava: error: --json {file} cannot be written: File too large.\n")
    assert not file.exists()


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert main(["samples"]) == 0
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == ""
    assert "sample:cat" in capsys.readouterr().out


def test_characters_that_stdout_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    record = {"text": "≤ é"}
    monkeypatch.setattr(samples, "run", lambda args: print(record["text"]) or write_json("-", [record]) or 0)
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii", write_through=True)
    monkeypatch.setattr(sys, "stdout", out)
    assert main(["samples"]) == 0
    text, line, _ = out.buffer.getvalue().decode("ascii").split("\n")  # pyright: ignore[reportAttributeAccessIssue]
    assert text == r"\u2264 \xe9"
    assert json.loads(line) == record


def test_half_a_character_in_json(tmp_path: Path) -> None:
    write_json(str(tmp_path / "out.json"), [{"path": "b\udcff"}, {"path": "ü"}])
    lines = (tmp_path / "out.json").read_text(encoding="utf-8").splitlines()
    assert lines == ['{"path": "b\\udcff"}', '{"path": "ü"}']


@pytest.mark.parametrize(
    "words",
    [
        ("data", "pack", "data.json", "OUT"),
        ("convert", "from-torch", "src", "OUT"),
        ("convert", "merge", "run", "OUT"),
    ],
)
def test_names_that_no_library_takes(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([word.replace("OUT", "out\udcff") for word in words]) == 2
    assert "DST 'out\\udcff' has bytes that are no utf-8; give another name" in capsys.readouterr().err


def test_chat_without_stdin(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    assert main(["chat"]) == 2
    assert "stdin is closed" in capsys.readouterr().err
