"""What generation is measured on: any batch of prompts and answers, and those of the paper's tables."""

import dataclasses

from dynllava_jax.config.model import ModelConfig
from dynllava_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class GenerationShape:
    """What is generated.

    Attributes:
        batch: requests together.
        text: tokens of each prompt beside its images'.
        images: pictures of each prompt.
        new: tokens of each answer.
    """

    batch: int
    text: int
    images: int
    new: int

    def __post_init__(self) -> None:
        for option, value, least in (
            ("--batch", self.batch, 1),
            ("--prompt", self.text, 1),
            ("--images", self.images, 0),
            ("--new-tokens", self.new, 2),
        ):
            if value < least:
                raise InputError(f"{option} must be {least} or more, not {value}.")

    def prompt(self, config: ModelConfig) -> int:
        """Tokens of one prompt."""
        return self.text + self.images * config.image_tokens

    def tokens(self, config: ModelConfig) -> int:
        """Of one prompt and its answer."""
        return self.prompt(config) + self.new


@dataclasses.dataclass(frozen=True)
class PaperShape:
    """A measurement of the paper: the model, what is generated, and whether with a cache."""

    preset: str
    shape: GenerationShape
    cached: bool


PAPER = {
    "table4-1k": PaperShape("dynamic_llava_13b", GenerationShape(8, 50, 1, 1000), False),
    "table4-2k": PaperShape("dynamic_llava_13b", GenerationShape(8, 50, 1, 2000), False),
    "table4-4k": PaperShape("dynamic_llava_13b", GenerationShape(8, 50, 1, 4000), False),
    "table4-1k-cache": PaperShape("dynamic_llava_13b", GenerationShape(8, 50, 1, 1000), True),
    "table4-2k-cache": PaperShape("dynamic_llava_13b", GenerationShape(8, 50, 1, 2000), True),
    "table4-4k-cache": PaperShape("dynamic_llava_13b", GenerationShape(8, 50, 1, 4000), True),
    "table14": PaperShape("dynamic_llava_13b", GenerationShape(1, 50, 1, 1000), True),
}
"""Tables 4 and 14 of the paper, which leave the prompts' length open: 50 tokens, as LVIS-VQA's (table 8)."""
