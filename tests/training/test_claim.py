"""One run at a time in a work folder, also after a kill, and where there are no locks."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dynllava_jax.errors import InputError
from dynllava_jax.training.claim import FILE, Claim, claim


def test_a_second_run_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    workdir = str(tmp_path / "new" / "run")
    with claim(workdir) as held:
        again = claim(workdir)
        with (
            pytest.raises(InputError, match=f"{workdir} is in use by process {os.getpid()} on .*another --workdir"),
            again,
        ):
            pass
        held.check()
    with claim(workdir) as held:
        held.check()


def test_a_kill_gives_it_back(tmp_path: Path) -> None:
    program = "import fcntl, os, sys; fcntl.flock(open(sys.argv[1], 'ab'), fcntl.LOCK_EX); os.kill(os.getpid(), 9)"
    subprocess.run([sys.executable, "-c", program, tmp_path / FILE], check=False)
    with claim(str(tmp_path)) as held:
        held.check()


def test_where_nothing_locks_the_later_run_stops_the_earlier(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*args: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with claim(str(tmp_path)) as first:
        assert "knows no locks (No locks available)" in caplog.text
        first.check()
        with claim(str(tmp_path)) as second:
            with pytest.raises(InputError, match=r"was taken over by process \d+ on .*saves nothing more"):
                first.check()
            second.check()


def test_a_claim_that_cannot_be_read_is_no_other_run_s(tmp_path: Path) -> None:
    with claim(str(tmp_path)) as held:
        (tmp_path / FILE).write_text("{")
        held.check()
        (tmp_path / FILE).write_text(json.dumps({"run": "x"}))
        with pytest.raises(InputError, match="taken over by another run"):
            held.check()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"work folder .* cannot be written: .*; give another one"),
        claim(str(tmp_path / "file" / "run")),
    ):
        pass


def test_a_bucket_that_says_why_in_a_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise PermissionError("Forbidden: anonymous caller")

    monkeypatch.setattr(Claim, "_take", refuse)
    with (
        pytest.raises(InputError, match="gs://b/run cannot be written: Forbidden: anonymous caller; give"),
        claim("gs://b/run"),
    ):
        pass
