"""Samples that train and samples that are held out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynllava_jax.config.data import DataConfig
from dynllava_jax.config.training import EvalConfig, InitConfig, TrainConfig
from dynllava_jax.data.plan import FILLER
from dynllava_jax.errors import InputError
from dynllava_jax.testing import synthetic_image
from dynllava_jax.training.describe import spelled
from dynllava_jax.training.samples import Samples, training_samples
from dynllava_jax.training.setup import Subject, settle
from tests.data.tfds_fixture import VQA, jpeg, write_tfds
from tests.training.runs import write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def opened(data: Path, tokenizer: Path, /, **options: Any) -> tuple[Subject, Samples, Samples | None]:
    config = TrainConfig(
        **{
            "model": "tiny",
            "init": InitConfig(tokenizer=str(tokenizer)),
            "data": DataConfig(str(data), str(data.parent), index=str(data.parent), max_length=256, workers=0),
            "global_batch_size": 8,
            **options,
        }
    )
    subject = settle(config)
    return subject, *training_samples(config, subject)


def numbers(samples: Samples) -> list[int]:
    planned = np.concatenate([samples.plan[step].samples for step in range(len(samples.plan))])
    return sorted(samples.dataset.index_of[planned[planned != FILLER]].tolist())


def test_every_image_sample_once(data: Path, tokenizer_folder: Path) -> None:
    _, samples, held_out = opened(data, tokenizer_folder)
    assert held_out is None
    with_image = [index for index in range(24) if index % 6]
    assert numbers(samples) == with_image
    assert len(samples.plan) == 3
    ids = [name for step in range(3) for name in samples.ids(step)]
    assert sorted(ids) == sorted(f"s{index}" for index in with_image)


def test_held_out_samples_are_not_trained_on(data: Path, tokenizer_folder: Path) -> None:
    _, samples, held_out = opened(data, tokenizer_folder, eval=EvalConfig(every=5, samples=4))
    assert held_out is not None
    assert len(numbers(held_out)) == 4
    assert sorted(numbers(samples) + numbers(held_out)) == [index for index in range(24) if index % 6]
    _, other, _ = opened(data, tokenizer_folder)
    assert samples.fingerprint != other.fingerprint


@pytest.mark.parametrize(("asked", "expected"), [(5, 5), (99, 10)])
def test_a_set_of_its_own_may_be_held_out(
    asked: int, expected: int, data: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    own = write_data(tmp_path, 12, seed=1)
    evaluation = EvalConfig(every=5, source=str(own), images=str(tmp_path), samples=asked)
    _, samples, held_out = opened(data, tokenizer_folder, eval=evaluation)
    assert held_out is not None
    assert len(numbers(held_out)) == expected
    assert len(numbers(samples)) == 20


def test_the_adapter_is_for_the_source_that_needs_one(data: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    examples = [
        {"image": jpeg(synthetic_image(id)), "question_id": id, "question": "where?", "answers": ["near the tree"]}
        for id in range(8)
    ]
    tfds = f"tfds:{write_tfds(tmp_path, VQA, examples)}"
    both = {"index": str(tmp_path), "max_length": 256, "workers": 0, "adapter": "dynllava_jax.data.adapters:vqa"}
    for sources, sizes in (((str(data), tfds), (20, 8)), ((tfds, str(data)), (8, 20))):
        _, samples, held_out = opened(
            data,
            tokenizer_folder,
            data=DataConfig(sources[0], **both),
            eval=EvalConfig(every=5, source=sources[1], samples=99),
        )
        assert held_out is not None
        assert (len(numbers(samples)), len(numbers(held_out))) == sizes
    with pytest.raises(InputError, match=r"takes no data\.adapter"):
        opened(data, tokenizer_folder, data=DataConfig(str(data), **both))


def test_steps_in_place_of_epochs(data: Path, tokenizer_folder: Path) -> None:
    assert len(opened(data, tokenizer_folder, steps=7)[1].plan) == 7
    assert len(opened(data, tokenizer_folder, epochs=2.0)[1].plan) == 6


def test_a_sample_is_spelled_out_span_by_span(data: Path, tokenizer_folder: Path) -> None:
    subject, samples, _ = opened(data, tokenizer_folder)
    spans = spelled(samples.dataset.load(0).sample, subject.tokenizer)
    assert [kind for kind, _ in spans] == ["system", "image", "last_instruction", "answer*"]
    assert spans[1][1] == "16 slots"
    assert spans[2][1].endswith("ASSISTANT:")
    assert spans[3][1].endswith("</s>")
