"""A run whose config, warm start, index of lengths and work folder lie on a bucket."""

import shutil
from pathlib import Path

import pytest

from dynllava_jax.cli.main import main
from dynllava_jax.training.metrics import JsonLines
from dynllava_jax.training.stop import StopSignal
from tests.checkpoint.buckets import simulate
from tests.training.runs import CONFIG, records, saved

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("one_program")]


def test_a_run_begins_on_a_bucket_and_goes_on_there(
    data: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was refused: an empty folder, which a bucket does not have, could not be listed."""
    simulate(tmp_path, monkeypatch)
    bucket = tmp_path / "bucket"
    shutil.copytree(checkpoint, bucket / "model")
    shutil.copy(CONFIG, bucket / "tiny.py")
    argv = [
        *("train", "--config=gs://bucket/tiny.py", "--workdir=gs://bucket/run"),
        *(f"--config.data.source={data}", f"--config.data.images={data.parent}"),
        *("--config.init.checkpoint=gs://bucket/model", "--config.data.index=gs://bucket/index"),
        *("--config.mesh=data=1", "--config.data.max_shapes=1", "--config.steps=4", "--config.log.health_every=0"),
    ]
    votes = iter([False, True])
    with monkeypatch.context() as killed:
        killed.setattr(StopSignal, "agreed", lambda self: next(votes))
        killed.setattr(JsonLines, "close", lambda self: None)
        assert main(argv) == 75
    assert saved(bucket / "run") == [2]
    assert main(argv) == 0
    assert saved(bucket / "run") == [2, 4]
    # The kill took no record of a step that was saved.
    assert [record["step"] for record in records(bucket / "run")] == [1, 2, 3, 4]
