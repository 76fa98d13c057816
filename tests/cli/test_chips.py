"""The `aot` extra's compilers find no chip on most machines: no command tells of it, and no chip is overlooked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from dynllava_jax.cli import chips


def test_a_command_starts_without_a_word() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    command = [sys.executable, "-m", "dynllava_jax.cli.main", "doctor"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "devices  " in done.stdout
    assert done.stderr == ""


def test_doctor_tells_the_versions_where_jax_has_no_device() -> None:
    command = [sys.executable, "-m", "dynllava_jax.cli.main", "doctor"]
    done = subprocess.run(command, env={**os.environ, "JAX_PLATFORMS": "nothing"}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "devices  none" in done.stdout
    assert "jaxlib  " in done.stdout
    assert done.stderr.splitlines()[-1].startswith("dynllava: error: JAX has no device: Unable to initialize backend")


@pytest.mark.parametrize(
    ("installed", "chip", "named", "chosen"),
    [
        (("libtpu", "jax_cuda13_plugin"), None, None, "cpu"),
        (("libtpu", "jax_cuda13_plugin"), "accel0", None, None),
        (("libtpu", "jax_cuda13_plugin"), None, "tpu", "tpu"),
        (("libtpu",), None, None, None),
        ((), None, None, None),
    ],
)
def test_the_cpu_is_named_only_where_nothing_else_can_be(
    installed: tuple[str, ...],
    chip: str | None,
    named: str | None,
    chosen: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("JAX_PLATFORMS", named or "")
    if named is None:
        monkeypatch.delenv("JAX_PLATFORMS")
    if chip is not None:
        (tmp_path / chip).touch()
    monkeypatch.setattr(chips, "_CHIPS", (str(tmp_path / "accel*"),))
    monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: name in installed or None)
    chips.choose_platform()
    assert os.environ.get("JAX_PLATFORMS") == chosen
