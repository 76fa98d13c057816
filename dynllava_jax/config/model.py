"""The whole model: tower, projector, decoder, sparsification, and how text and pictures are prepared for it."""

import dataclasses
import math
from typing import Literal

from dynllava_jax.config.check import MAX_SIZE, check_choice, check_fields, check_sizes
from dynllava_jax.config.decoder import DecoderConfig
from dynllava_jax.config.sparsity import SparsityConfig
from dynllava_jax.config.vision import (
    IdentityProjector,
    MlpProjector,
    Projector,
    TokenPackerProjector,
    VisionConfig,
)
from dynllava_jax.errors import InputError, shown


@dataclasses.dataclass(frozen=True)
class ImagePrep:
    """How a picture becomes pixels (official `CLIPImageProcessor` and `process_images`).

    `aspect` "pad" pads to a square with the mean colour, "crop" resizes the short side and crops the centre.
    """

    resize: int = 336
    crop: int = 336
    aspect: Literal["pad", "crop"] = "pad"
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)

    def __post_init__(self) -> None:
        check_fields(self)
        check_sizes(self, "resize", "crop")
        if not all(map(math.isfinite, self.mean)):
            raise InputError(f"ImagePrep.mean must be finite, not {self.mean}.")
        if not all(0 < value < math.inf for value in self.std):
            raise InputError(f"ImagePrep.std must be above 0 and finite, not {self.std}: pixels are divided by it.")
        check_choice(self, "aspect", ("pad", "crop"))


@dataclasses.dataclass(frozen=True)
class TextPrep:
    """How a conversation becomes token ids.

    `round_ids` are the ids of the marker that opens a user's turn ("USER:" directly after `</s>`); the last
    match of them in the text after the image starts the last instruction. The embedding of `pad_id` is not trained, as
    torch's `padding_idx` is not; without one all are, and 0 stands behind answers that have ended.
    """

    template: str = "vicuna_v1"
    bos_id: int = 1
    eos_id: int = 2
    pad_id: int | None = 0
    round_ids: tuple[int, ...] = (11889, 29901)
    max_length: int = 2048

    def __post_init__(self) -> None:
        check_fields(self)
        check_sizes(self, "max_length")
        for name in ("bos_id", "eos_id", "round_ids"):
            ids = getattr(self, name)
            if not all(0 <= token < MAX_SIZE for token in (ids if isinstance(ids, tuple) else (ids,))):
                raise InputError(f"TextPrep.{name} {shown(ids)} is no token of any vocabulary.")
        if self.pad_id is not None and not -1 <= self.pad_id < MAX_SIZE:  # -1 is what torch writes for none
            raise InputError(f"TextPrep.pad_id {shown(self.pad_id)} is no token of any vocabulary.")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the shape of the parameters and the meaning of the inputs. Hashable, jit-static."""

    vision: VisionConfig = VisionConfig()
    projector: Projector = MlpProjector()
    decoder: DecoderConfig = DecoderConfig()
    sparsity: SparsityConfig = SparsityConfig()
    image_prep: ImagePrep = ImagePrep()
    text_prep: TextPrep = TextPrep()

    def __post_init__(self) -> None:
        check_fields(self)
        if self.sparsity.sparse_layer >= self.decoder.num_layers:
            raise InputError(
                f"SparsityConfig.sparse_layer {self.sparsity.sparse_layer} must be below the decoder's "
                f"{self.decoder.num_layers} layers."
            )
        if self.image_prep.crop != self.vision.image_size:
            raise InputError(
                f"ImagePrep.crop {self.image_prep.crop} is not the tower's image size {self.vision.image_size}."
            )
        if isinstance(self.projector, IdentityProjector) and self.vision.hidden_size != self.decoder.hidden_size:
            raise InputError(
                f"An identity projector needs equal widths, not tower {self.vision.hidden_size} and decoder "
                f"{self.decoder.hidden_size}; use MlpProjector."
            )
        if isinstance(self.projector, TokenPackerProjector):
            self._check_token_packer(self.projector)

    def _check_token_packer(self, projector: TokenPackerProjector) -> None:
        if self.vision.grid % projector.scale:
            raise InputError(f"TokenPacker's scale {projector.scale} does not divide the grid of {self.vision.grid}.")
        if max(projector.levels) > self.vision.num_layers:
            raise InputError(
                f"TokenPacker's levels {projector.levels} exceed the tower's {self.vision.num_layers} layers."
            )
        if self.vision.select_feature != "patch" or self.sparsity.tower_selector is not None:
            raise InputError("TokenPacker needs the whole patch grid: select_feature patch and no tower_selector.")

    @property
    def layers_used(self) -> int:
        """Tower layers that are built: the highest hidden state that anyone reads."""
        levels = self.projector.levels if isinstance(self.projector, TokenPackerProjector) else ()
        return max(self.vision.select_index, *levels) if levels else self.vision.select_index

    @property
    def projected_tokens(self) -> int:
        """Tokens per image that leave the projector."""
        if isinstance(self.projector, TokenPackerProjector):
            return (self.vision.grid // self.projector.scale) ** 2
        return self.sparsity.kept("tower", self.vision.num_features)

    @property
    def image_tokens(self) -> int:
        """P: slots that one image takes in the decoder's input sequence."""
        return self.sparsity.kept("embed", self.projected_tokens)

    @property
    def kept_image_tokens(self) -> int:
        """K: image tokens of one image that enter the deep stack."""
        return self.sparsity.kept("image", self.image_tokens)
