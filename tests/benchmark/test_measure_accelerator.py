"""`tools/measure_accelerator.py`: each command within its limit, and what it left however it ended."""

import json
from pathlib import Path

import pytest

from tools import measure_accelerator as tool
from tools.measure_accelerator import Measurement


def run(monkeypatch: pytest.MonkeyPatch, folder: Path, *words: str) -> int:
    monkeypatch.setattr("sys.argv", ["measure_accelerator.py", str(folder), *words])
    return tool.main()


def use(monkeypatch: pytest.MonkeyPatch, *measurements: Measurement) -> None:
    monkeypatch.setattr(tool, "MEASUREMENTS", measurements)


def test_the_list_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "made"
    assert run(monkeypatch, folder, "--list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(tool.MEASUREMENTS)
    assert all(f"--json={folder}" in line for line in lines)
    assert not folder.exists()


def test_all_aims_fit_into_the_budget() -> None:
    assert tool.BUDGET <= 540
    limits = {one.name: one.limit for one in tool.MEASUREMENTS}
    assert sum(limits[name] for name in ("attention", "decode", "answer", "prefill", "step")) <= tool.BUDGET


@pytest.mark.slow
def test_records_and_words_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = "flops --preset tiny"
    use(monkeypatch, Measurement("bad", 60, "flops --preset none", ""), Measurement("good", 60, "", count))
    assert run(monkeypatch, tmp_path, "--only", "good", "--rehearse") == 0
    assert json.loads((tmp_path / "good.json").read_text())["model"] == "tiny"
    assert run(monkeypatch, tmp_path, "--only", "bad") == 1
    log = (tmp_path / "log.txt").read_text()
    assert f"$ dynllava {count} --json={tmp_path / 'good.json'}" in log
    assert "# done" in log
    assert "There is no preset 'none'" in log
    assert "# failed with status 2" in log


def test_what_takes_too_long_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    endless = "bench attention --shape 1,1,1,8,8 --round 1000"
    use(monkeypatch, Measurement("endless", 2, endless, ""))
    assert run(monkeypatch, tmp_path) == 1
    assert "stopped at its limit, 0 records" in capsys.readouterr().out
    use(monkeypatch, Measurement("late", 60, "flops", ""))
    assert run(monkeypatch, tmp_path, "--budget", "10") == 1
    assert "no time left, 0 records" in capsys.readouterr().out
