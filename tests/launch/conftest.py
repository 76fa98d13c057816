"""Launchers run with commands that are not there: each writes down how it was called and does what the test says."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


class Desk:
    """A folder of such commands, first on the PATH."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cwd = ROOT
        (folder / "bin").mkdir()

    def fake(self, name: str, body: str = "") -> None:
        """A command whose words are kept in a line of `calls`, then runs `body` in the folder."""
        file = self.folder / "bin" / name
        file.write_text(f'#!/usr/bin/env bash\ncd "{self.folder}"\necho "$*" >> {name}.calls\n{body}\n')
        file.chmod(0o755)

    def statuses(self, *numbers: int) -> None:
        """`dynllava` leaves with these, one run after the other."""
        (self.folder / "statuses").write_text("".join(f"{number}\n" for number in numbers))
        self.fake("dynllava", "status=$(head -n 1 statuses); sed -i 1d statuses; exit $status")

    def calls(self, name: str) -> list[str]:
        file = self.folder / f"{name}.calls"
        return file.read_text().splitlines() if file.exists() else []

    def start(self, script: str, *words: str, **variables: str) -> subprocess.Popen[str]:
        kept = {name: os.environ[name] for name in ("HOME", "TMPDIR") if name in os.environ}
        path = {"PATH": f"{self.folder / 'bin'}:{os.environ['PATH']}", "PAUSE": "0"}
        command = ["bash", str(ROOT / "launch" / script), *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            command,
            env=kept | path | variables,
            cwd=self.cwd,
            stdout=pipe,
            stderr=pipe,
            text=True,
            start_new_session=True,
        )

    def run(self, script: str, *words: str, **variables: str) -> tuple[int, str, str]:
        """Status, stdout and stderr."""
        with self.start(script, *words, **variables) as process:
            try:
                out, error = process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)  # with what it started, which would hold the pipes open
                raise
        return process.returncode, out, error


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)
