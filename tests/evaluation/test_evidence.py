"""The whole comparison on random models: what can be run is run once, what cannot says why."""

import argparse
from pathlib import Path

import pytest

from dynllava_jax.cli import eval as eval_command
from dynllava_jax.cli.main import main
from dynllava_jax.demo import embedded
from dynllava_jax.errors import InputError
from dynllava_jax.evaluation import settings
from dynllava_jax.evaluation.evidence import Evidence, Result, Sizes, gather
from dynllava_jax.evaluation.metrics import Interval
from dynllava_jax.evaluation.report import page
from dynllava_jax.evaluation.subject import Place, Subject
from tests.evaluation.models import write

NAMED = {
    "VISION": ("dense base", "dense control", "I|T, r = 20 %", "2-D pooling before the decoder, 20 %"),
    "LANGUAGE": ("I|T, r^OT = 50 %", "H2O 50 %"),
    "ABLATIONS": ("I|T as the paper trains it", "tau fixed"),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write(folder / "control", image=None, output=None)
    write(folder / "dynamic", seed=1)
    return folder


def only_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for table, names in NAMED.items():
        rows = getattr(settings, table)
        chosen = tuple(row for row in rows if row.name in names)
        assert len(chosen) == len(names)
        monkeypatch.setattr(settings, table, chosen)


@pytest.mark.slow
def test_rows_are_run_once_and_the_others_say_why(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    only_named(monkeypatch)
    out = tmp_path / "docs" / "evidence.md"
    command = ["eval", "demo", "--all", "--models", str(models), "--questions", "9", "--descriptions", "2"]
    command += ["--scenes", "2", "--out", str(out), "--rows", str(tmp_path / "rows")]
    assert main(command) == 0
    assert capsys.readouterr().out == f"{out}: 6 rows, 2 not run\n"
    text = out.read_text()
    command = "dynllava eval demo --all --models DIR --questions 9 --descriptions 2 --scenes 2"
    assert f"Made by `{command}`;" in text
    assert "- vision: dense base (no base_whole or base among the models)" in text
    assert "- ablations: tau fixed (no tau_fixed among the models)" in text
    assert "| H2O 50 % | " in text
    for name in ("accuracy.svg", "perplexity.svg", "objects.svg", "kept_0.png", "kept_2.png"):
        assert f"](evidence/{name})" in text
        assert (out.parent / "evidence" / name).stat().st_size > 1000

    # The second run computes nothing: it must not even load a model but for the pictures.
    rows = {file: file.stat().st_mtime_ns for file in (tmp_path / "rows").iterdir()}
    claims = [file for file in rows if "-seen-36." in file.name]
    assert [len(file.read_text().splitlines()) for file in claims] == [36, 36]
    place = Place(models, tmp_path / "rows")
    monkeypatch.setattr(Subject, "assistant", property(lambda self: pytest.fail("a model was loaded")))
    evidence = gather(place, Sizes(9, 2, 2))
    assert rows == {file: file.stat().st_mtime_ns for file in (tmp_path / "rows").iterdir()}
    (pooled,) = (row for row in evidence.vision if "pooling" in row.setting.name)
    ours, dense = pooled.values["flops"]["exact"]["image_tokens"]
    assert ours < 0.3 * dense  # 3 of 16 tokens in every layer
    kept, whole = pooled.values["cache_bytes"]["shallow"]
    assert kept < whole
    (heavy,) = (row for row in evidence.language if row.setting.eviction is not None)
    assert 0.4 < heavy.values["kept"] < 0.6
    assert "chrf" not in heavy.values


def test_the_same_weights_that_keep_more_do_not_find_the_answers_of_those_that_keep_less(tmp_path: Path) -> None:
    setting = next(row for row in settings.VISION if row.name == "FastV after layer 2, 20 %")
    keys = set()
    for place, rate in (("one", 0.2), ("other", 0.5)):
        (tmp_path / place).mkdir()
        write(tmp_path / place / "control", rate=rate)
        keys.add(Subject(setting, tmp_path / place / "control", Place(tmp_path, tmp_path)).key)
        keys.add(_name(tmp_path / place / "control"))
    assert len(keys) == 4


def test_what_cannot_be_computed_is_no_damaged_file(models: Path, tmp_path: Path) -> None:
    subject = Subject(settings.CONTROL, models / "control", Place(models, tmp_path))

    def refuse() -> None:
        raise InputError("the model does not fit.")

    with pytest.raises(InputError, match=r"^the model does not fit\.$"):
        subject.once("costs", refuse)
    subject.file("costs", "json").write_text("{")
    with pytest.raises(InputError, match=r"costs\.json is damaged: .*; remove it\.$"):
        subject.once("costs", refuse)


def test_another_demo_model_does_not_find_the_answers_of_the_one_before(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _name("demo")
    monkeypatch.setattr(embedded, "CHECKPOINT", models / "dynamic")
    assert _name("demo") != before


def _name(model: str | Path) -> str:
    parser = argparse.ArgumentParser()
    eval_command.add_parser(parser.add_subparsers())
    return eval_command._name(parser.parse_args(["eval", "demo", "--model", str(model)]))


def test_a_page_without_models_lists_everything_as_not_run(tmp_path: Path) -> None:
    evidence = gather(Place(tmp_path, tmp_path / "rows"), Sizes())
    assert all(row.missing for row in (*evidence.vision, *evidence.language, *evidence.ablations))
    text = page(evidence, "dynllava eval demo --all", [])
    assert text.count("- vision: ") == len(settings.VISION)
    assert "| LLaVA-1.5 | 78.5 | 62.0 | 85.9 | 576 | 10.1 |" in text
    assert "111.52" in text


def test_what_is_told_is_what_was_measured() -> None:
    values = {
        "accuracy": {"what": Interval(0.5, 0.4, 0.6), "all": Interval(0.75, 0.7, 0.8)},
        "blind": {"what": Interval(0.1, 0.0, 0.2), "all": Interval(0.25, 0.2, 0.3)},
        "over_control": Interval(0.98, 0.96, 1.0),
        "flops": {
            name: {part: [2e9, 8e9] for part in ("image_tokens", "prompt")} for name in ("exact", "eq13", "fastv")
        },
        "cache_bytes": {"shallow": [2.0**20, 2.0**20], "deep": [2.0**20, 2.0**22]},
        "seconds": {"prefill": 0.5, "token": 0.9, "device": "cpu"},
    }
    row = next(row for row in settings.VISION if row.name == "I, r = 20 %")
    same = next(row for row in settings.LANGUAGE if row.name == "I, r = 20 %")
    text = page(Evidence(Sizes(), [Result(row, values)], [Result(same, missing="no model")], []), "command", [])
    assert "| I, r = 20 % | 0.750 [0.700, 0.800] | 0.250 [0.200, 0.300] | 0.980 [0.960, 1.000] | 75.0% |" in text
    assert "| I, r = 20 %, blind | 0.100 |" in text
    assert "| 2 (-75%) |" in text
    assert "| 1.00 / 1.00 | 1.00 / 4.00 | 0.50 | 0.90 |" in text
    assert "0.980 [0.960, 1.000] of the control's right answers" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--all"], "--all needs --models"),
        (["--all", "--models", ".", "--selector", "random"], "--selector would have no effect"),
        (["--all", "--models", ".", "--descriptions", "0"], "--descriptions must be 1 or more"),
        (["--all", "--models", ".", "--model", "x"], "--model would have no effect"),
        (["--all", "--models", ".", "--output-keep", "off"], "--output-keep would have no effect"),
        (["--all", "--models", ".", "--json"], "drop --json"),
        (["--rows", "/dev/null/rows"], "--rows /dev/null/rows cannot be written: Not a directory"),
        (["--models", "."], "--models is for --all"),
        (["--out", "page.md"], "--out is for --all"),
        (["--scenes", "0"], "--scenes is for --all"),
    ],
)
def test_bad_input_is_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", "demo", *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
