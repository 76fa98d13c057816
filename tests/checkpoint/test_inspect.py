"""`dynllava inspect`: numbers that can be checked by hand, and a hash that survives a round trip."""

import json
from pathlib import Path

import numpy as np
import pytest

from dynllava_jax.checkpoint import store
from dynllava_jax.checkpoint.inspect import inspect
from dynllava_jax.cli.main import main
from dynllava_jax.config.presets import tiny
from dynllava_jax.convert.from_torch import convert
from dynllava_jax.convert.to_torch import export
from tests import golden_files
from tests.checkpoint.test_store import random_leaves


def test_rows(tmp_path: Path) -> None:
    leaves = dict(random_leaves())
    leaves["decoder/layers/3/mlp/up/kernel"][0, :2] = [np.nan, np.inf]
    leaves["decoder/embedding"] = leaves["decoder/embedding"].astype(np.float16)
    store.write(tmp_path / "model", tiny(), leaves.items())
    seen: list[int] = []
    found = inspect(tmp_path / "model", on_start=seen.append, on_part=lambda nbytes: seen.append(-nbytes))
    assert sum(seen) == 0
    rows = {row.path: row for row in found.rows}
    assert sum(row.nbytes for row in found.rows) == found.nbytes == sum(leaf.nbytes for leaf in leaves.values())
    assert found.parameters == sum(leaf.size for leaf in leaves.values())
    assert set(found.dtypes) == {"float32", "float16"}
    query = rows["decoder/layers/*/attention/query/kernel"]
    assert (query.layers, query.shape, query.not_finite) == (4, (64, 64), 0)
    kernels = [leaves[f"decoder/layers/{i}/attention/query/kernel"] for i in range(4)]
    assert query.norm == pytest.approx(np.sqrt(sum(np.sum(np.square(k, dtype=np.float64)) for k in kernels)))
    assert rows["decoder/layers/*/mlp/up/kernel"].not_finite == 2
    assert rows["projector/layers/0/kernel"].layers is None


def test_letters_are_printed_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    extras = store.Extras(facts={"source": "Gewichte/für München"})
    store.write(tmp_path / "model", tiny(), random_leaves(), extras=extras)
    assert main(["inspect", str(tmp_path / "model")]) == 0
    assert '  source: "Gewichte/für München"' in capsys.readouterr().out


@pytest.mark.slow
def test_the_hash_is_the_same_after_a_round_trip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(golden_files.ROOT / "checkpoint", tmp_path / "model", vision_tower=golden_files.ROOT / "vision_tower")
    export(tmp_path / "model", tmp_path / "torch", layout="official")
    convert(tmp_path / "torch", tmp_path / "again", vision_tower=golden_files.ROOT / "vision_tower")
    first, second = inspect(tmp_path / "model"), inspect(tmp_path / "again")
    assert first.content_hash == second.content_hash
    assert first.rows == second.rows
    assert main(["inspect", str(tmp_path / "model")]) == 0
    assert f"content hash {first.content_hash}" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "model"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["content_hash"] == first.content_hash
