"""What pyproject.toml promises, requirements.txt pins and the wheel carries."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FULL = ("train", "tfds", "gcs", "show", "dev")


def active(lines: list[str], python: str) -> dict[str, Requirement]:
    """The requirements that count on that Python, by name."""
    found = [Requirement(line) for line in lines]
    environment = {"python_version": python}
    return {item.name: item for item in found if item.marker is None or item.marker.evaluate(environment)}


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_requirements_pin_everything_within_its_bounds(python):
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    pins = active([line for line in lines if line], python)
    wanted = [*PROJECT["dependencies"], *(line for name in FULL for line in PROJECT["optional-dependencies"][name])]
    for name, requirement in active(wanted, python).items():
        if name == PROJECT["name"]:
            continue
        (pin,) = pins[name].specifier
        assert pin.operator == "=="
        assert requirement.specifier.contains(pin.version), f"{requirement} does not allow {pin}"


def test_upper_bounds_carry_their_reason():
    for line in (ROOT / "pyproject.toml").read_text().splitlines():
        if ",<" in line:
            assert "  # " in line, line


@pytest.mark.parametrize("extra", ["train", "aot"])
def test_commands_that_take_config_files_can_read_them(extra):
    assert "ml_collections" in active(PROJECT["optional-dependencies"][extra], "3.11")


def test_a_source_distribution_has_what_the_documents_name():
    """Without a word setuptools adds tests/test_*.py, which miss everything that they read."""
    lines = (ROOT / "MANIFEST.in").read_text().splitlines()
    folders = [line.removeprefix("graft ") for line in lines if line.startswith("graft ")]
    assert all((ROOT / folder).is_dir() for folder in folders)
    named = " ".join((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
    for folder in ("configs", "docs", "launch", "notebooks", "tests", "tools", ".ci"):
        assert f"{folder}/" in named or f"({folder})" in named
        assert folder in folders


def test_importing_the_package_is_light():
    program = (
        "import sys, dynllava_jax\n"
        "assert not {'torch', 'transformers', 'tensorflow', 'grain'} & set(sys.modules)\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge._backends, 'a backend was started'\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)
