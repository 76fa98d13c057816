"""The CLIP vision tower and the projectors that carry its features into the decoder."""

import dataclasses
from typing import Literal

from dynllava_jax.config.check import check_choice, check_fields, check_layers, check_positive, check_sizes
from dynllava_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """A CLIP ViT (official `CLIPVisionModel`).

    `num_layers` counts the layers of the *source*; only the first `ModelConfig.layers_used` are built and
    run, because `select_layer = -2` reads the output of the last but one.
    """

    hidden_size: int = 1024
    intermediate_size: int = 4096
    num_layers: int = 24
    num_heads: int = 16
    image_size: int = 336
    patch_size: int = 14
    norm_eps: float = 1e-5
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    select_layer: int = -2
    select_feature: Literal["patch", "cls_patch"] = "patch"

    def __post_init__(self) -> None:
        check_fields(self)
        check_layers(self, "num_layers")
        check_sizes(self, "hidden_size", "intermediate_size", "num_heads", "image_size", "patch_size")
        check_positive(self, "norm_eps")
        check_choice(self, "activation", ("quick_gelu", "gelu"))
        check_choice(self, "select_feature", ("patch", "cls_patch"))
        if self.hidden_size % self.num_heads:
            raise InputError(
                f"vision.num_heads {self.num_heads} does not divide vision.hidden_size {self.hidden_size}; "
                "give a head count that does."
            )
        if self.patch_size > self.image_size:
            raise InputError(
                f"vision.patch_size {self.patch_size} exceeds vision.image_size {self.image_size}: not one patch fits."
            )
        if not -self.num_layers - 1 <= self.select_layer <= self.num_layers:
            raise InputError(
                f"vision.select_layer {self.select_layer} names no hidden state of a tower with {self.num_layers} "
                f"layers; use {-self.num_layers - 1} … {self.num_layers}."
            )

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size // self.patch_size

    @property
    def num_patches(self) -> int:
        return self.grid**2

    @property
    def select_index(self) -> int:
        """`select_layer` as an index into the hidden states, where 0 is the embedding after pre-norm."""
        return self.select_layer % (self.num_layers + 1)

    @property
    def num_features(self) -> int:
        """Features per image that leave the tower."""
        return self.num_patches + (self.select_feature == "cls_patch")


@dataclasses.dataclass(frozen=True)
class IdentityProjector:
    """No projection: the tower's width is the decoder's (official `identity`)."""


@dataclasses.dataclass(frozen=True)
class MlpProjector:
    """`depth` linear layers with exact GELU between them (official `linear` = 1, `mlp2x_gelu` = 2)."""

    depth: int = 2

    def __post_init__(self) -> None:
        check_fields(self)
        check_layers(self, "depth")


@dataclasses.dataclass(frozen=True)
class TokenPackerProjector:
    """TokenPacker: one query per `scale`×`scale` cell attends to the cell's multi-level features.

    `levels` are the hidden states (0 is the embedding) whose channels are concatenated as keys and values.
    """

    scale: int = 2
    width: int = 1024
    num_heads: int = 8
    levels: tuple[int, ...] = (12, 16, 22, 23)

    def __post_init__(self) -> None:
        check_fields(self)
        check_sizes(self, "scale", "width", "num_heads")
        if self.width % self.num_heads:
            raise InputError(f"projector.num_heads {self.num_heads} does not divide projector.width {self.width}.")
        if not self.levels or min(self.levels) < 0:
            raise InputError(
                f"projector.levels {self.levels} must name at least one hidden state of the tower, counted from 0 (the "
                "embedding), not from the end."
            )


Projector = IdentityProjector | MlpProjector | TokenPackerProjector
