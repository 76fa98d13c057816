"""The tools that make the demo's files, and data to try training on: asked for help, or wrongly, they write nothing."""

import sys
from pathlib import Path

import pytest

from tools import demo_tokenizer, make_scenes


def test_the_tokenizer_is_not_made_anew_for_its_help(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--help` trained it and wrote it over the package's."""
    monkeypatch.setattr(demo_tokenizer, "write_tokenizer", lambda *_, **__: pytest.fail("it is written"))
    for word, status in (("--help", 0), ("elsewhere", 2)):
        monkeypatch.setattr(sys, "argv", ["demo_tokenizer.py", word])
        with pytest.raises(SystemExit) as ended:
            demo_tokenizer.main()
        assert ended.value.code == status
    assert "dynllava_jax/demo/tokenizer" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [("--samples", "0"), ("--samples", "-1"), ("--seed", "-1")])
def test_no_scenes_are_no_data(
    wrong: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["make_scenes.py", str(tmp_path / "data"), *wrong])
    with pytest.raises(SystemExit):
        make_scenes.main()
    assert "--samples must be 1 or more, and --seed 0 or more" in capsys.readouterr().err
    assert not (tmp_path / "data").exists()
