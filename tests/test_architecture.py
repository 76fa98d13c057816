"""The rooms of the package: who may use whom, and how large a file may grow."""

import ast
import re
import statistics
from pathlib import Path

import dynllava_jax

PACKAGE = Path(dynllava_jax.__file__).parent
EVERYONE = {"errors", "progress"}
MAY_USE = {
    "config": set(),
    "nn": {"config"},
    "kernels": {"nn"},
    "sparsify": {"config", "nn"},
    "model": {"config", "nn", "kernels", "sparsify"},
    "data": {"config"},
    "sharding": {"config", "nn"},
    "checkpoint": {"config", "nn", "model"},
    "demo": {"config", "data", "nn", "checkpoint", "model"},
    "inference": {"config", "nn", "kernels", "sparsify", "model", "data", "sharding", "checkpoint", "demo"},
    "convert": {"config", "data", "checkpoint", "model"},
    "verify": {
        *("config", "nn", "kernels", "sparsify", "model", "data", "sharding"),
        *("checkpoint", "inference", "convert", "training"),
    },
    "analysis": {"config", "nn", "kernels", "model", "data", "sharding", "checkpoint", "inference"},
    "training": {
        *("config", "nn", "kernels", "sparsify", "model", "data", "sharding"),
        *("checkpoint", "inference", "analysis"),
    },
    "planning": {"config", "model", "sharding", "kernels", "checkpoint", "nn", "inference", "analysis", "training"},
    "benchmark": {
        *("config", "nn", "kernels", "model", "data", "sharding"),
        *("checkpoint", "inference", "analysis", "training"),
    },
    "evaluation": {
        *("config", "nn", "data", "checkpoint", "demo", "sparsify", "inference"),
        *("analysis", "training", "viz"),
    },
    "viz": {"inference"},
    "testing": {"config", "data", "model", "inference"},
    "cli": {
        "config",
        "data",
        "demo",
        "kernels",
        "checkpoint",
        "inference",
        "sharding",
        "convert",
        "verify",
        "analysis",
        "training",
        "planning",
        "benchmark",
        "evaluation",
        "viz",
    },
}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def imported_rooms(file: Path) -> set[str]:
    """Rooms that a file uses, also those it imports inside a function."""
    names = []
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module] if node.module != "dynllava_jax" else [f"dynllava_jax.{a.name}" for a in node.names]
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("dynllava_jax.")}


def axes_in_shapes(file: Path) -> set[str]:
    """The capital letters in the shapes of jaxtyping."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        match node:
            case ast.Subscript(ast.Name(dtype), ast.Tuple([_, ast.Constant(str(shape))])) if dtype != "Literal":
                found.update(re.findall(r"\b[A-Z]\b", shape))
    return found


def test_every_axis_is_explained_where_it_is_used() -> None:
    """In the docstring that the file opens with, as in "B batch, S sequence"."""
    for file in files():
        opening = ast.get_docstring(ast.parse(file.read_text())) or ""
        unexplained = {axis for axis in axes_in_shapes(file) if not re.search(rf"(?<!\w){axis}[ ,=:]", opening)}
        assert not unexplained, f"{file}: {', '.join(sorted(unexplained))}"
    assert len([file for file in files() if axes_in_shapes(file)]) > 50


def test_dependencies_point_one_way() -> None:
    for file in files():
        room = file.relative_to(PACKAGE).parts[0]
        if room.endswith(".py"):
            continue
        forbidden = imported_rooms(file) - MAY_USE[room] - EVERYONE - {room}
        assert not forbidden, f"{file.relative_to(PACKAGE)} uses {sorted(forbidden)}"


def test_files_stay_small() -> None:
    lengths = {file: file.read_text().count("\n") for file in files()}
    largest = max(lengths, key=lambda file: lengths[file])
    assert lengths[largest] <= 400, f"{largest} has {lengths[largest]} lines"
    assert statistics.median(lengths.values()) < 150


def test_every_file_says_what_it_is() -> None:
    for file in files():
        source = file.read_text()
        assert not source.strip() or ast.get_docstring(ast.parse(source)), f"{file} has no docstring"


def test_torch_is_imported_only_where_it_is_needed() -> None:
    for file in files():
        top = ast.parse(file.read_text()).body
        names = [alias.name for node in top if isinstance(node, ast.Import) for alias in node.names]
        names += [node.module or "" for node in top if isinstance(node, ast.ImportFrom)]
        assert not any(name.split(".")[0] in ("torch", "transformers", "tensorflow") for name in names), file
