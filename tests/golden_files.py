"""Where the recorded numbers of the official code lie."""

import json
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent / "goldens" / "mha"


def arrays(case: str) -> dict[str, np.ndarray]:
    with np.load(ROOT / "cases" / f"{case}.npz") as file:
        return dict(file)


def info(case: str) -> dict[str, Any]:
    return json.loads((ROOT / "cases" / f"{case}.json").read_text())
