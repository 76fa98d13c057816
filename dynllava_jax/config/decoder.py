"""The Llama decoder and its rotary position embedding."""

import dataclasses

from dynllava_jax.config.check import MAX_SIZE, check_fields, check_layers, check_positive, check_sizes
from dynllava_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class LinearScaling:
    """Positions divided by `factor` (transformers `linear`)."""

    factor: float

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive(self, "factor")


@dataclasses.dataclass(frozen=True)
class DynamicNtkScaling:
    """Dynamic NTK (transformers `dynamic`): plain RoPE while the length stays within the trained context.

    Beyond it the base would change with the length, and keys that are already rotated in the cache would be
    wrong: longer inputs are refused.
    """

    factor: float

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive(self, "factor")


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3's frequency-dependent interpolation (transformers `llama3`)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int

    def __post_init__(self) -> None:
        check_fields(self)
        check_positive(self, "factor", "low_freq_factor", "high_freq_factor", "original_max_position")


RopeScaling = LinearScaling | DynamicNtkScaling | Llama3Scaling


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A Llama decoder (official `LlamaConfig`)."""

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_layers: int = 32
    num_heads: int = 32
    num_kv_heads: int = 32
    head_dim: int = 128
    norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    rope_scaling: RopeScaling | None = None
    max_positions: int = 4096
    attention_bias: bool = False
    tie_embeddings: bool = False
    initializer_range: float = 0.02

    def __post_init__(self) -> None:
        check_fields(self)
        check_layers(self, "num_layers")
        check_sizes(self, "vocab_size", "hidden_size", "intermediate_size", "num_heads", "num_kv_heads", "head_dim")
        check_sizes(self, "max_positions")
        check_positive(self, "norm_eps", "rope_theta", "initializer_range")
        if self.num_heads % self.num_kv_heads:
            raise InputError(
                f"DecoderConfig.num_kv_heads {self.num_kv_heads} does not divide num_heads {self.num_heads}."
            )
        if isinstance(self.rope_scaling, LinearScaling) and self.max_positions * self.rope_scaling.factor > MAX_SIZE:
            raise InputError(
                f"DecoderConfig.max_positions {self.max_positions} times the factor {self.rope_scaling.factor} is more "
                f"than {MAX_SIZE} positions."
            )
        if self.head_dim % 2:
            raise InputError(f"DecoderConfig.head_dim {self.head_dim} is odd; rotary embedding needs pairs.")

    @property
    def context(self) -> int:
        """The longest sequence, in tokens, that the positions are good for."""
        if isinstance(self.rope_scaling, LinearScaling):
            return int(self.max_positions * self.rope_scaling.factor)
        return self.max_positions
