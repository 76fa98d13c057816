"""`dynllava flops` against the paper: every cell of its image-token tables, and the whole generation of its table 4."""

import json
from pathlib import Path
from typing import Any

import pytest

from dynllava_jax.cli.main import main


def count(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert main(["flops", *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def tokens(total: int, kept: int, layer: int = 2) -> list[str]:
    return ["--image-tokens", str(total), "--kept-tokens", str(kept), "--sparse-layer", str(layer)]


# Tables 1, 2, 10 and 11: image tokens, kept, layers that see all; printed TFLOPs (equation 13), the same and the exact
# count with a digit more, where known, and the share saved.
METHODS = {
    "dense": (576, 576, 2),
    "Dynamic-LLaVA": (576, 115, 2),
    "FastV": (576, 144, 3),
    "PruMerge+": (146, 146, 2),
    "VoCo-LLaMA": (128, 128, 2),
    "HiRED": (115, 115, 2),
    "TokenPacker 144": (144, 144, 2),
    "TokenPacker 64": (64, 64, 2),
    "TokenPacker + FastV": (144, 72, 3),
    "Dynamic-TokenPacker": (144, 57, 2),
}
CELLS = [
    ("7b", "dense", 10.1, 10.07, 7.63, None, None),
    ("7b", "Dynamic-LLaVA", 2.5, 2.49, 1.88, 0.753, 0.754),
    ("7b", "FastV", 3.2, 3.20, 2.42, 0.683, None),
    ("7b", "PruMerge+", 2.5, 2.52, None, None, None),
    ("7b", "VoCo-LLaMA", 2.2, 2.21, None, None, None),
    ("7b", "HiRED", 2.0, 1.98, None, None, None),
    ("7b", "TokenPacker 144", 2.5, 2.48, None, None, None),
    ("7b", "TokenPacker 64", 1.1, 1.10, None, None, None),
    ("7b", "TokenPacker + FastV", 1.4, 1.36, None, None, None),
    ("7b", "Dynamic-TokenPacker", 1.1, 1.07, None, None, None),
    ("13b", "dense", 19.6, 19.60, 14.89, None, None),
    ("13b", "Dynamic-LLaVA", 4.7, 4.66, 3.53, 0.762, 0.763),
    ("13b", "FastV", 6.0, 5.96, 4.51, None, None),
    ("13b", "PruMerge+", 4.9, 4.92, None, None, None),
    ("13b", "VoCo-LLaMA", 4.3, 4.31, None, None, None),
    ("13b", "HiRED", 3.9, 3.87, None, None, None),
    ("13b", "TokenPacker 144", 4.9, 4.85, None, None, None),
    ("13b", "TokenPacker 64", 2.2, 2.15, None, None, None),
    ("13b", "TokenPacker + FastV", 2.6, 2.60, None, None, None),
    ("13b", "Dynamic-TokenPacker", 2.1, 2.06, None, None, None),
]


@pytest.mark.parametrize(("size", "method", "printed", "eq13", "exact", "saved", "saved_exactly"), CELLS)
def test_every_cell_of_the_paper(
    size: str,
    method: str,
    printed: float,
    eq13: float,
    exact: float | None,
    saved: float | None,
    saved_exactly: float | None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = count(capsys, "--preset", f"dynamic_llava_{size}", *tokens(*METHODS[method]))["flops"]["image_tokens"]
    assert found["eq13"]["dynamic"] / 1e12 == pytest.approx(eq13, abs=0.0055)
    assert found["eq13"]["dynamic"] / 1e12 == pytest.approx(printed, abs=0.055)
    if exact is not None:
        assert found["exact"]["dynamic"] / 1e12 == pytest.approx(exact, abs=0.0055)
    if saved is not None:
        assert found["eq13"]["saved"] == pytest.approx(saved, abs=0.00055)
    if saved_exactly is not None:
        assert found["exact"]["saved"] == pytest.approx(saved_exactly, abs=0.00055)


def test_a_models_own_selection_is_the_papers(capsys: pytest.CaptureFixture[str]) -> None:
    own = count(capsys)
    assert (own["image_tokens"], own["kept_tokens"], own["sparse_layer"]) == (576, 115, 2)
    packed = count(capsys, "--preset", "dynamic_tokenpacker_7b")
    assert (packed["image_tokens"], packed["kept_tokens"]) == (144, 57)
    dense = count(capsys, "--preset", "llava_1_5_7b", "--image-tokens", "146")
    assert dense["kept_tokens"] == 146
    assert dense["flops"]["prompt"]["exact"]["saved"] == 0


def test_fastv_counts_multiply_adds(capsys: pytest.CaptureFixture[str]) -> None:
    prompt = count(capsys, "--preset", "llava_1_5_7b", "--text-tokens", "46")["flops"]["prompt"]
    assert prompt["fastv"]["dense"] / 1e12 == pytest.approx(3.23, abs=0.005)
    assert prompt["exact"]["dense"] / 1e12 == pytest.approx(8.26, abs=0.005)
    assert prompt["eq13"]["dense"] / 1e12 == pytest.approx(10.89, abs=0.005)


@pytest.mark.parametrize(
    ("size", "new", "dense", "dynamic"),
    [("7b", 1000, 15.29, 6.09), ("7b", 4000, 153.27, 69.47), ("13b", 1000, 29.67, 11.63), ("13b", 2000, 87.37, 37.24)],
)
def test_whole_generation_without_cache(
    size: str, new: int, dense: float, dynamic: float, capsys: pytest.CaptureFixture[str]
) -> None:
    """Petaoperations of table 4's runs, 50 text tokens."""
    found = count(capsys, "--preset", f"dynamic_llava_{size}", "--text-tokens", "50", "--new-tokens", str(new))["flops"]
    assert found["generation_without_cache"]["dense"] / 1e15 == pytest.approx(dense, abs=0.0055)
    assert found["generation_without_cache"]["dynamic"] / 1e15 == pytest.approx(dynamic, abs=0.0055)
    with_cache = found["generation_with_cache"]["dense"] - found["prompt"]["exact"]["dense"]
    assert 1.0 < with_cache / ((new - 1) * {"7b": 12.95e9, "13b": 25.38e9}[size]) < 1.2


def test_cache_bytes(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ("--preset", "dynamic_llava_13b", "--text-tokens", "50", "--batch", "8", "--new-tokens", "1000")
    found = count(capsys, *asked)["cache_bytes"]
    assert found["all"]["dense"] / 2**30 == pytest.approx(9.92, abs=0.005)
    assert found["all"]["dynamic"] / 2**30 == pytest.approx(4.35, abs=0.005)
    assert found["prompt"]["dense"] + found["answer"]["dense"] == found["all"]["dense"]
    assert found["answer"]["dense"] == 8 * 1000 * 819200


def test_a_checkpoints_config_is_enough(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = count(capsys, "--model", str(checkpoint), "--images", "2")
    assert (found["image_tokens"], found["kept_tokens"]) == (32, 12)
    assert found["flops"]["beside_the_decoder"]["tower"] > 0


def test_people_read_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "image tokens, eq13 (TFLOP)         10.07        2.49    75.3%" in lines
    assert lines[-1].endswith("image predictor 0.0112, vocabulary head 0.000262")  # small, but not nothing


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--preset", "llava_7b"], "There is no preset 'llava_7b'"),
        (["--kept-tokens", "600"], "--kept-tokens must lie in 0 … 576, the image tokens that there are, not 600."),
        (
            ["--image-tokens", "64"],
            "--image-tokens 64 are fewer than the 115 that this model keeps; add --kept-tokens.",
        ),
        (["--image-tokens", "-1"], "--image-tokens must be 0 or more, not -1."),
        (["--preset", ""], "There is no preset ''; there are llava_1_5_7b, "),
        (["--sparse-layer", "32"], "--sparse-layer must lie in 1 … 31, not 32."),
        (["--text-tokens", "-1"], "--text-tokens must be 0 or more, not -1."),
        (["--model", "nowhere"], "--model nowhere is no folder; give a converted checkpoint, or --preset."),
    ],
)
def test_bad_input_is_one_line(options: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["flops", *options]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
