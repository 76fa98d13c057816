"""Ready-made configurations: the published models and a tiny one for tests."""

import difflib
from collections.abc import Callable

from dynllava_jax.config.check import check_type
from dynllava_jax.config.decoder import DecoderConfig
from dynllava_jax.config.model import ImagePrep, ModelConfig, TextPrep
from dynllava_jax.config.sparsity import MlpPredictor, SparsityConfig, TransformerPredictor
from dynllava_jax.config.vision import TokenPackerProjector, VisionConfig
from dynllava_jax.errors import InputError

_LLAMA_13B = DecoderConfig(
    hidden_size=5120, intermediate_size=13824, num_layers=40, num_heads=40, num_kv_heads=40, head_dim=128
)


def llava_1_5_7b() -> ModelConfig:
    """LLaVA-1.5 on Vicuna-7B v1.5: nothing is dropped."""
    return ModelConfig(sparsity=SparsityConfig().dense())


def llava_1_5_13b() -> ModelConfig:
    """LLaVA-1.5 on Vicuna-13B v1.5."""
    return ModelConfig(decoder=_LLAMA_13B, sparsity=SparsityConfig().dense())


def dynamic_llava_7b() -> ModelConfig:
    """Dynamic-LLaVA-7B: 20 % of the image tokens and half of the answer's go beyond layer 2."""
    return ModelConfig()


def dynamic_llava_13b() -> ModelConfig:
    """Dynamic-LLaVA-13B."""
    return ModelConfig(decoder=_LLAMA_13B)


def dynamic_tokenpacker_7b() -> ModelConfig:
    """Dynamic-LLaVA-7B on TokenPacker: 57 of an image's 144 tokens go beyond layer 2 (paper table 2)."""
    return ModelConfig(projector=TokenPackerProjector(), sparsity=SparsityConfig(image_keep_rate=0.4))


def dynamic_llava_34b() -> ModelConfig:
    """The shapes of Nous-Hermes-2-Yi-34B, for planning: no such weights were published.

    Its text settings, `round_ids` above all, have to come from its own tokenizer.
    """
    return ModelConfig(
        decoder=DecoderConfig(
            vocab_size=64000,
            hidden_size=7168,
            intermediate_size=20480,
            num_layers=60,
            num_heads=56,
            num_kv_heads=8,
            head_dim=128,
            rope_theta=5e6,
        )
    )


def dynamic_llava_70b() -> ModelConfig:
    """The shapes of Llama-2-70B, for planning: no such weights were published."""
    return ModelConfig(
        decoder=DecoderConfig(
            hidden_size=8192, intermediate_size=28672, num_layers=80, num_heads=64, num_kv_heads=8, head_dim=128
        )
    )


def tiny() -> ModelConfig:
    """A model of a few hundred kilobytes with every part of the large ones: 16 image tokens, 6 kept."""
    return ModelConfig(
        vision=VisionConfig(
            hidden_size=32, intermediate_size=64, num_layers=3, num_heads=4, image_size=56, patch_size=14
        ),
        decoder=DecoderConfig(
            vocab_size=512,
            hidden_size=64,
            intermediate_size=128,
            num_layers=4,
            num_heads=4,
            num_kv_heads=2,
            head_dim=16,
            max_positions=512,
        ),
        sparsity=SparsityConfig(
            sparse_layer=2,
            image_keep_rate=0.4,
            output_keep_rate=0.5,
            image_predictor=TransformerPredictor(width=32, num_heads=4, mlp_width=64),
            text_predictor=MlpPredictor(width=32),
        ),
        image_prep=ImagePrep(resize=56, crop=56),
        text_prep=TextPrep(round_ids=(337, 495), max_length=512),
    )


def demo() -> ModelConfig:
    """The embedded model: 576 image tokens as in the paper, everything else small."""
    return ModelConfig(
        vision=VisionConfig(hidden_size=128, intermediate_size=512, num_layers=5, num_heads=2),
        decoder=DecoderConfig(
            vocab_size=1024,
            hidden_size=192,
            intermediate_size=512,
            num_layers=6,
            num_heads=4,
            num_kv_heads=4,
            head_dim=48,
            max_positions=2048,
            rope_theta=1e7,
        ),
        sparsity=SparsityConfig(
            image_predictor=TransformerPredictor(width=128, num_heads=4, mlp_width=256),
            text_predictor=MlpPredictor(width=128),
        ),
        text_prep=TextPrep(round_ids=(279, 1001)),
    )


PRESETS: dict[str, Callable[[], ModelConfig]] = {
    make.__name__: make
    for make in (
        llava_1_5_7b,
        llava_1_5_13b,
        dynamic_llava_7b,
        dynamic_llava_13b,
        dynamic_tokenpacker_7b,
        dynamic_llava_34b,
        dynamic_llava_70b,
        demo,
        tiny,
    )
}


def get_preset(name: str) -> ModelConfig:
    """The configuration of that name.

    Raises:
        InputError: no such preset; the nearest name is given.
    """
    check_type(name, str, "The name of a preset")
    if name not in PRESETS:
        near = difflib.get_close_matches(name.replace("-", "_").lower(), PRESETS, n=1)
        known = f"did you mean {near[0]}? There" if near else "there"
        raise InputError(f"There is no preset {name!r}; {known} are {', '.join(PRESETS)}.")
    return PRESETS[name]()
