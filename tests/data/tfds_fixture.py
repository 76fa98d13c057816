"""A prepared TFDS data set written by hand: `features.json`, `dataset_info.json` and ArrayRecord, no TensorFlow."""

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image
from tensorflow_datasets import features

VQA = features.FeaturesDict(
    {
        "image": features.Image(encoding_format="jpeg"),
        "question_id": features.Scalar(np.int32),
        "question": features.Text(),
        "answers": features.Sequence(features.Text()),
    }
)
CAPTIONS = features.FeaturesDict(
    {
        "image": features.Image(encoding_format="jpeg"),
        "image/id": features.Scalar(np.int64),
        "captions": features.Sequence({"text": features.Text(), "id": features.Scalar(np.int64)}),
    }
)


def jpeg(picture: Image.Image) -> bytes:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=95)
    return file.getvalue()


def write_tfds(folder: Path, kind: Any, examples: Sequence[dict[str, Any]], shards: int = 2) -> Path:
    """Writes split "train" as `name/1.0.0` below `folder` and returns that folder."""
    path = folder / "my_set" / "1.0.0"
    path.mkdir(parents=True)
    kind.save_config(str(path))
    parts = [examples[start::shards] for start in range(shards)]
    for number, part in enumerate(parts):
        file = path / f"my_set-train.array_record-{number:05}-of-{shards:05}"
        writer = ArrayRecordWriter(str(file), "group_size:1")
        for example in part:
            writer.write(kind.serialize_example(kind.encode_example(example)))
        writer.close()
    split = {
        "name": "train",
        "numBytes": "1",
        "shardLengths": [str(len(part)) for part in parts],
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }
    info = {"name": "my_set", "version": "1.0.0", "fileFormat": "array_record", "splits": [split]}
    (path / "dataset_info.json").write_text(json.dumps(info))
    return path
