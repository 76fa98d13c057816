"""A `Source` that lives in memory, and what tests prepare its samples with."""

import dataclasses
import functools
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from dynllava_jax.config.data import DataConfig
from dynllava_jax.config.model import ImagePrep
from dynllava_jax.data.dataset import Dataset, join
from dynllava_jax.data.preparation import Preparation
from dynllava_jax.data.records import Record, SampleError
from dynllava_jax.data.templates import Turn, get_template
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.testing import synthetic_image, write_tokenizer

IMAGE_TOKENS = 4
PREP = ImagePrep(resize=8, crop=8)


@dataclasses.dataclass
class MemorySource:
    """Sample i has `images[i]` pictures and an answer of `words[i]` words; 0 words are a malformed record.

    Attributes:
        broken: ids of samples whose pictures cannot be read.
    """

    images: tuple[int, ...]
    words: tuple[int, ...]
    name: str = "memory"
    broken: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.images)

    def record(self, index: int) -> Record:
        id = f"{self.name}-{index}"
        if not self.words[index]:
            raise SampleError(id, "malformed record", "it has no answer")
        question = "<image>\n" * self.images[index] + "What is it?"
        pictures = tuple(f"{index}.{number}" for number in range(self.images[index]))
        return Record(id, pictures, (Turn(question, " ".join(["cat"] * self.words[index])),))

    def picture(self, record: Record, number: int) -> Image.Image:
        if record.id in self.broken:
            raise SampleError(record.id, "missing image", f"picture {number}")
        return synthetic_image(number, 12, 12)

    def fingerprint(self) -> str:
        return repr(self)


@functools.cache
def tokenizer() -> Tokenizer:
    with tempfile.TemporaryDirectory() as folder:
        write_tokenizer(Path(folder))
        return Tokenizer.load(folder)


def preparation(max_length: int = 256, *, truncate: bool = True) -> Preparation:
    return Preparation(tokenizer(), get_template("vicuna_v1"), IMAGE_TOKENS, PREP, max_length, truncate)


def make_dataset(folder: Path, *sources: MemorySource, config: DataConfig | None = None, **options: Any) -> Dataset:
    config = config or DataConfig(source=tuple(source.name for source in sources), workers=0, **options)
    return join(sources, preparation(), config, [folder] * len(sources))
