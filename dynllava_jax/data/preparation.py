"""How a record becomes what the model reads: tokens, labels, spans and pixels.

Axis legend: H W pixels of the tower's input.
"""

import dataclasses
import functools
import hashlib

import numpy as np
from jaxtyping import Float

from dynllava_jax.config.data import IMAGE_SLOTS
from dynllava_jax.config.model import ImagePrep
from dynllava_jax.data.conversation import tokenize_conversation
from dynllava_jax.data.image import preprocess
from dynllava_jax.data.prompt import IMAGE_TOKEN, round_ids
from dynllava_jax.data.records import Record, SampleError
from dynllava_jax.data.source import Source
from dynllava_jax.data.spans import IGNORE, Sample, expand
from dynllava_jax.data.templates import Template
from dynllava_jax.data.tokenizer import Tokenizer
from dynllava_jax.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Preparation:
    """What the model asks of its input. Goes into worker processes.

    Attributes:
        tokenizer, template: text to ids.
        image_tokens: P, slots of one image.
        image: picture to pixels.
        max_length: tokens of a sample at most, image slots included.
        truncate: cut longer samples as the official code does, ids first and again when the slots are in place; else
            they are errors.
    """

    tokenizer: Tokenizer
    template: Template
    image_tokens: int
    image: ImagePrep
    max_length: int
    truncate: bool

    def sample(self, record: Record) -> tuple[Sample, int]:
        """The sample, and how many tokens it had before it was cut.

        Raises:
            SampleError: what `tokenize_conversation` refuses, more images than a batch has slots, too long, a cut
                through an image, or no token left that is trained on.
        """
        tokens = tokenize_conversation(self.tokenizer, self.template, record)
        marks = int((tokens.ids == IMAGE_TOKEN).sum())
        length = len(tokens.ids) + marks * (self.image_tokens - 1)
        if marks > IMAGE_SLOTS[-1]:
            raise SampleError(record.id, f"more than {IMAGE_SLOTS[-1]} images", f"{marks}")
        if length > self.max_length and not self.truncate:
            raise SampleError(record.id, "longer than data.max_length", f"{length} tokens, {self.max_length} allowed")
        # The official collator does not count the slots, so that the answer and the last instruction are the last ones
        # of this part, whether or not the second cut leaves any of them.
        kept = slice(None) if (tokens.ids[self.max_length :] == IMAGE_TOKEN).any() else slice(self.max_length)
        try:
            sample = expand(
                tokens.ids[kept],
                tokens.labels[kept],
                image_tokens=self.image_tokens,
                round_ids=self._round_ids,
                max_length=self.max_length,
            )
        except InputError as error:
            raise SampleError(record.id, "an image would be cut at data.max_length", str(error).rstrip(".")) from None
        if sample.labels is None or (sample.labels[1:] == IGNORE).all():
            cut = f"its {length} tokens are cut at {self.max_length}" if length > self.max_length else ""
            raise SampleError(record.id, "no supervised token", cut)
        return sample, length

    def pixels(self, source: Source, record: Record) -> list[Float[np.ndarray, "H W 3"]]:
        """What `image.preprocess` makes of each picture of the record.

        Raises:
            SampleError: a picture cannot be read, or is too long and thin.
        """
        pictures = (source.picture(record, number) for number in range(len(record.images)))
        try:
            return [preprocess(picture, self.image) for picture in pictures]
        except SampleError:
            raise
        except InputError as error:
            raise SampleError(record.id, "unusable image", str(error).rstrip(".")) from None

    @functools.cached_property
    def fingerprint(self) -> str:
        """Changes when the same record would become another sample; pixels aside."""
        parts = (
            self.tokenizer.fingerprint(),
            self.template,
            self.image_tokens,
            self.max_length,
            self.truncate,
            IMAGE_SLOTS,
        )
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @functools.cached_property
    def _round_ids(self) -> tuple[int, ...]:
        return round_ids(self.tokenizer, self.template)
