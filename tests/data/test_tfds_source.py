"""A prepared TFDS data set as a source, without TensorFlow."""

import importlib.util
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynllava_jax.data.source import SampleError, Source, open_source
from dynllava_jax.data.templates import Turn
from dynllava_jax.errors import InputError
from dynllava_jax.testing import synthetic_image
from tests.data.tfds_fixture import CAPTIONS, VQA, jpeg, write_tfds

_ADAPTERS = "dynllava_jax.data.adapters"


def as_arrays(example: dict[str, Any]) -> dict[str, Any]:
    """An adapter of a user's own, whose pictures are arrays."""
    turns = [{"from": "human", "value": "<image>"}, {"from": "gpt", "value": "yes"}]
    return {"id": "own", "images": [np.full((4, 5, 3), 7, np.uint8)], "conversations": turns}


@pytest.fixture(scope="module")
def vqa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    def example(id: int, answers: list[str]) -> dict[str, Any]:
        return {"image": jpeg(synthetic_image(id)), "question_id": id, "question": "Où?", "answers": answers}

    examples = [example(0, ["here", "there", "there"]), example(1, ["no"]), example(2, [])]
    return write_tfds(tmp_path_factory.mktemp("vqa"), VQA, examples)


def test_vqa(vqa: Path) -> None:
    source: Source = open_source(f"tfds:{vqa}", None, f"{_ADAPTERS}:vqa")
    for opened in (source, pickle.loads(pickle.dumps(source))):
        assert isinstance(opened, Source)
        assert len(opened) == 3
        record = opened.record(0)
        question = "<image>\nOù?\nAnswer the question using a single word or phrase."
        assert (record.id, record.turns) == ("0", (Turn(question, "there"),))
        assert record.images == (jpeg(synthetic_image(0)),)
        assert opened.picture(record, 0).size == (96, 64)
        assert opened.record(2).id == "1"  # the second shard's
        with pytest.raises(SampleError, match=r"example 1: .*it has no answer"):
            opened.record(1)
    assert open_source(f"tfds:{vqa}:train[:2]", None, f"{_ADAPTERS}:vqa").fingerprint() != source.fingerprint()


def test_captions_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captions = [{"text": " A cat. ", "id": 1}, {"text": "A dog.", "id": 2}]
    example = {"image": jpeg(synthetic_image()), "image/id": 7, "captions": captions}
    write_tfds(tmp_path, CAPTIONS, [example], shards=1)
    from tensorflow_datasets.core.utils import file_utils

    monkeypatch.setattr(file_utils, "list_data_dirs", lambda *args, **options: [str(tmp_path)])
    for spec in ("tfds:my_set", "tfds:my_set:train", "tfds:my_set:1.0.0", "tfds:my_set:1.0.0:train"):
        record = open_source(spec, None, f"{_ADAPTERS}:coco_captions").record(0)
        assert record.turns == (Turn("<image>\nProvide a one-sentence caption for the provided image.", "A cat."),)


def test_an_adapter_of_ones_own(vqa: Path) -> None:
    source: Any = open_source(f"tfds:{vqa}", None, f"{__name__}:as_arrays")
    record = source.record(1)
    assert record.id == "own"
    np.testing.assert_array_equal(source.picture(record, 0), np.full((4, 5, 3), 7))
    assert source.encoded(record, 0).startswith(b"\x89PNG")


def test_tensorflow_is_not_imported(vqa: Path) -> None:
    assert importlib.util.find_spec("tensorflow") is None or "tensorflow" not in sys.modules
    code = (
        "import sys; from dynllava_jax.data.source import open_source\n"
        f"s = open_source('tfds:{vqa}', None, '{_ADAPTERS}:vqa'); s.picture(s.record(0), 0)\n"
        "sys.exit('tensorflow' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("spec", "adapter", "says"),
    [
        ("tfds:{vqa}", None, r"needs data\.adapter"),
        ("tfds:{vqa}", "vqa", "must be 'package:function'"),
        ("tfds:{vqa}", "no_such:vqa", "No module named 'no_such'"),
        ("tfds:{vqa}", _ADAPTERS + ":vqb", "has no attribute 'vqb'"),
        ("tfds:{vqa}:test", _ADAPTERS + ":vqa", "cannot be read at random: .*test"),
        ("tfds:no_such_set", _ADAPTERS + ":vqa", "no prepared data set no_such_set is found"),
        ("tfds:", _ADAPTERS + ":vqa", "must be tfds:NAME"),
    ],
)
def test_what_cannot_be_opened(vqa: Path, spec: str, adapter: str | None, says: str) -> None:
    with pytest.raises(InputError, match=says):
        open_source(spec.format(vqa=vqa), None, adapter)
