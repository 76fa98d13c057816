"""What is dropped, where, and by whom."""

import dataclasses

from dynllava_jax.config.check import check_fields, check_layers, check_rate, check_sizes
from dynllava_jax.errors import InputError


def _check_quarters(width: int) -> None:
    if width < 4 or width % 4:
        raise InputError(f"A predictor's width must be a multiple of 4, not {width}: its layers halve it twice.")


@dataclasses.dataclass(frozen=True)
class LinearPredictor:
    """LayerNorm and one linear layer to the two logits: the smallest learned selector."""


@dataclasses.dataclass(frozen=True)
class MlpPredictor:
    """LayerNorm, then width → width/2 → width/4 → 2 with GELU (official `TextPredictor`)."""

    width: int = 512

    def __post_init__(self) -> None:
        check_fields(self)
        check_sizes(self, "width")
        _check_quarters(self.width)


@dataclasses.dataclass(frozen=True)
class TransformerPredictor:
    """`depth` encoder blocks over the tokens of one image, local and global halves (official `VisionPredictor`)."""

    width: int = 512
    num_heads: int = 8
    mlp_width: int = 2048
    depth: int = 2

    def __post_init__(self) -> None:
        check_fields(self)
        check_layers(self, "depth")
        check_sizes(self, "width", "num_heads", "mlp_width")
        _check_quarters(self.width)
        if self.width % self.num_heads:
            raise InputError(f"TransformerPredictor.num_heads {self.num_heads} does not divide width {self.width}.")


Predictor = LinearPredictor | MlpPredictor | TransformerPredictor


@dataclasses.dataclass(frozen=True)
class SparsityConfig:
    """Token sparsification (paper section 3; official `sparse_config`).

    A selector is `"learned"`, `"random"`, `"stride"`, of images also `"pool"` and `"fastv"`, or your own
    `"package.module:Class"`; None keeps everything. The three image places are: after the tower, before the decoder,
    after decoder layer `sparse_layer - 1`.
    """

    sparse_layer: int = 2
    tower_selector: str | None = None
    tower_keep_rate: float = 1.0
    embed_selector: str | None = None
    embed_keep_rate: float = 1.0
    image_selector: str | None = "learned"
    image_keep_rate: float = 0.2
    output_selector: str | None = "learned"
    output_keep_rate: float = 0.5
    instruct_selector: str | None = None
    instruct_keep_rate: float = 0.7
    image_predictor: Predictor = TransformerPredictor()
    text_predictor: Predictor = MlpPredictor()

    def __post_init__(self) -> None:
        check_fields(self)
        check_rate(
            self, "tower_keep_rate", "embed_keep_rate", "image_keep_rate", "output_keep_rate", "instruct_keep_rate"
        )
        if self.sparse_layer < 1:
            raise InputError(
                f"SparsityConfig.sparse_layer must be 1 or more, not {self.sparse_layer}: the predictors read the "
                "output of at least one decoder layer."
            )
        for place in ("tower_selector", "embed_selector"):
            if getattr(self, place) == "learned":
                raise InputError(
                    f"SparsityConfig.{place} has no learned form; use random, stride, pool or your own class."
                )

    def dense(self) -> "SparsityConfig":
        """The same weights with nothing dropped by the decoder's selectors."""
        return dataclasses.replace(self, image_selector=None, output_selector=None, instruct_selector=None)

    def kept(self, place: str, count: int) -> int:
        """Tokens kept of `count` image tokens at `place` (tower, embed or image): truncated, at least one."""
        if getattr(self, f"{place}_selector") is None:
            return count
        return max(1, int(count * getattr(self, f"{place}_keep_rate")))
