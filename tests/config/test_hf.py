"""Foreign config files mean what transformers and the official code take them to mean."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynllava_jax.config import presets
from dynllava_jax.config.decoder import DecoderConfig, DynamicNtkScaling, LinearScaling, Llama3Scaling, RopeScaling
from dynllava_jax.config.hf import from_hf, to_hf
from dynllava_jax.config.hf_vision import image_prep_to_hf, vision_to_hf
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.sparsity import LinearPredictor, MlpPredictor, SparsityConfig, TransformerPredictor
from dynllava_jax.config.vision import IdentityProjector, MlpProjector, TokenPackerProjector
from dynllava_jax.errors import InputError
from tests import golden_files

CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
}

LLAVA_1_5_7B = {
    "model_type": "llava_llama",
    "architectures": ["LlavaLlamaForCausalLM"],
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "vocab_size": 32000,
    "image_aspect_ratio": "pad",
    "mm_hidden_size": 1024,
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "mm_vision_select_layer": -2,
    "mm_vision_tower": "openai/clip-vit-large-patch14-336",
    "pad_token_id": 0,
    "rope_scaling": None,
    "tokenizer_model_max_length": 2048,
}

LLAVA_HF_7B = {
    "model_type": "llava",
    "text_config": {
        "_name_or_path": "lmsys/vicuna-7b-v1.5",
        "model_type": "llama",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-05,
        "vocab_size": 32064,
    },
    "vision_config": {**CLIP, "projection_dim": 768},
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
    "projector_hidden_act": "gelu",
    "image_token_index": 32000,
    "pad_token_id": 32001,
    "tie_word_embeddings": False,
}

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def both_ways(config: ModelConfig) -> ModelConfig:
    written = json.loads(json.dumps([to_hf(config), vision_to_hf(config.vision), image_prep_to_hf(config.image_prep)]))
    return from_hf(*written, template=config.text_prep.template, round_ids=config.text_prep.round_ids)


def sparsity(**changes: Any) -> ModelConfig:
    return dataclasses.replace(ModelConfig(), sparsity=dataclasses.replace(SparsityConfig(), **changes))


def decoder(**changes: Any) -> ModelConfig:
    return dataclasses.replace(ModelConfig(), decoder=dataclasses.replace(DecoderConfig(), **changes))


def test_the_released_llava_1_5_is_our_preset() -> None:
    assert from_hf(LLAVA_1_5_7B, CLIP) == presets.llava_1_5_7b()


def test_llava_hf_is_the_same_model_with_more_rows() -> None:
    found = from_hf(LLAVA_HF_7B)
    wanted = presets.llava_1_5_7b()
    assert found.vision == wanted.vision
    assert found.projector == wanted.projector
    assert found.decoder == dataclasses.replace(wanted.decoder, vocab_size=32064)
    assert found.text_prep.pad_id == 32001
    assert found.image_prep.aspect == "crop"
    without_tower = {key: value for key, value in LLAVA_HF_7B.items() if key != "vision_config"}
    assert from_hf(without_tower) == found


def test_the_golden_checkpoint() -> None:
    folder = golden_files.ROOT

    def read(name: str) -> dict[str, Any]:
        return json.loads((folder / name).read_text())

    found = from_hf(read("checkpoint/config.json"), read("vision_tower/config.json"), round_ids=(337, 495))
    assert found.sparsity.image_keep_rate == 0.4
    assert found.sparsity.instruct_selector == "learned"
    assert found.sparsity.image_predictor == TransformerPredictor(width=32, num_heads=4, mlp_width=64, depth=2)
    assert (
        from_hf(read("checkpoint_bin/config.json"), read("vision_tower_clipmodel/config.json")).vision == found.vision
    )
    base = from_hf(read("config_llava15_base.json"), read("vision_tower/config.json"))
    assert base.sparsity == SparsityConfig().dense()


@pytest.mark.parametrize(
    "config",
    [
        *(getattr(presets, name)() for name in ("llava_1_5_7b", "dynamic_llava_7b", "dynamic_llava_13b", "tiny")),
        dataclasses.replace(ModelConfig(), projector=MlpProjector(1)),
        dataclasses.replace(ModelConfig(), projector=MlpProjector(3)),
        dataclasses.replace(ModelConfig(), projector=TokenPackerProjector(scale=3)),
        decoder(attention_bias=True, tie_embeddings=True, num_kv_heads=8, rope_theta=5e5),
        decoder(rope_scaling=LinearScaling(2.0)),
        decoder(rope_scaling=DynamicNtkScaling(4.0)),
        sparsity(instruct_selector="learned", sparse_layer=5, image_keep_rate=0.5),
    ],
)
def test_official_both_ways(config: ModelConfig) -> None:
    assert both_ways(config) == config


@given(
    layer=st.integers(1, 80),
    rate=st.floats(0.01, 1.0),
    image=st.sampled_from([None, "learned"]),
    output=st.sampled_from([None, "learned"]),
    quarter=st.integers(1, 64),
)
def test_any_official_sparsity_both_ways(
    layer: int, rate: float, image: str | None, output: str | None, quarter: int
) -> None:
    config = dataclasses.replace(
        decoder(num_layers=81),
        sparsity=SparsityConfig(
            sparse_layer=layer,
            image_selector=image,
            output_selector=output,
            output_keep_rate=rate,
            image_predictor=TransformerPredictor(width=4 * quarter, num_heads=4),
            text_predictor=MlpPredictor(4 * quarter),
        ),
    )
    assert both_ways(config) == config


@pytest.mark.parametrize(
    ("config", "needle"),
    [
        (decoder(head_dim=64), "cannot express head_dim 64"),
        (decoder(rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 8192)), "cannot express Llama 3's RoPE"),
        (sparsity(image_selector="random"), "cannot express image_selector 'random'"),
        (sparsity(tower_selector="stride"), "cannot express tower_selector 'stride'"),
        (sparsity(image_predictor=LinearPredictor()), "not LinearPredictor and MlpPredictor"),
        (sparsity(text_predictor=MlpPredictor(256)), "not 512 (image) and 256 (text)"),
        (dataclasses.replace(ModelConfig(), projector=TokenPackerProjector(width=512)), "one TokenPacker"),
    ],
)
def test_what_the_official_layout_cannot_express(config: ModelConfig, needle: str) -> None:
    with pytest.raises(InputError) as caught:
        to_hf(config)
    assert needle in str(caught.value)


@pytest.mark.parametrize(
    ("rope", "scaling", "theta"),
    [
        ({"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 7.0}, LinearScaling(2.0), 7.0),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}}, DynamicNtkScaling(2.0), 10000.0),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, None, 5e5),
        ({"rope_parameters": {"rope_type": "linear", "factor": 4, "rope_theta": 5e5}}, LinearScaling(4.0), 5e5),
        (
            {"rope_scaling": LLAMA3},
            Llama3Scaling(8.0, 1.0, 4.0, 8192),
            10000.0,
        ),
        (
            {
                "rope_scaling": {"type": "linear", "factor": 2.0},
                "rope_parameters": {"rope_type": "default", "rope_theta": 5e5},
            },
            LinearScaling(2.0),
            10000.0,
        ),
    ],
)
def test_rope_in_both_spellings(rope: dict[str, Any], scaling: RopeScaling | None, theta: float) -> None:
    found = from_hf({**LLAVA_HF_7B, "text_config": {**LLAVA_HF_7B["text_config"], **rope}}).decoder
    assert (found.rope_scaling, found.rope_theta) == (scaling, theta)
    if not isinstance(scaling, Llama3Scaling) and "rope_parameters" not in rope:
        assert from_hf({**LLAVA_1_5_7B, **rope}, CLIP).decoder.rope_scaling == scaling


@pytest.mark.parametrize(
    ("change", "needle"),
    [
        ({"text_config": {"model_type": "qwen2"}}, "text_config: model_type 'qwen2' is not supported"),
        ({"text_config": {"mlp_bias": True}}, "text_config: mlp_bias True"),
        ({"text_config": {"rope_scaling": {"type": "linear"}}}, "rope_scaling has no factor"),
        ({"text_config": {"rope_parameters": {"rope_type": "yarn"}}}, "rope_type 'yarn' is not supported"),
        (
            {"text_config": {"rope_scaling": LLAMA3, "original_max_position_embeddings": 4096}},
            "original_max_position_embeddings 4096 is not supported (config.json: text_config: rope_scaling says",
        ),
        ({"vision_config": {"model_type": "siglip_vision_model"}}, "model_type 'siglip_vision_model'"),
        ({"vision_config": {**CLIP, "num_attention_heads": 7}}, "num_attention_heads 7 does not divide"),
        ({"vision_feature_layer": [-2, -5]}, "several tower layers [-2, -5] (vision_feature_layer"),
        ({"vision_feature_select_strategy": "some"}, "use one of default, full"),
        ({"projector_hidden_act": "relu"}, "projector_hidden_act 'relu'"),
        ({"multimodal_projector_bias": False}, "multimodal_projector_bias False"),
        ({"model_type": "llava_onevision"}, "model_type 'llava_onevision'"),
        ({"text_config": {"eos_token_id": [1, 2]}}, "eos_token_id must be one number"),
    ],
)
def test_what_llava_hf_has_and_we_do_not(change: dict[str, Any], needle: str) -> None:
    with pytest.raises(InputError) as caught:
        from_hf(LLAVA_HF_7B | change)
    assert needle in str(caught.value)
    assert str(caught.value).startswith("config.json")


def test_mistrals_defaults() -> None:
    """Its files leave out other values than a Llama's do, a window among them."""
    found = from_hf(LLAVA_HF_7B | {"text_config": {"model_type": "mistral", "sliding_window": None}}).decoder
    assert (found.intermediate_size, found.num_kv_heads, found.max_positions) == (14336, 8, 131072)
    short: dict[str, Any] = {"model_type": "mistral", "max_position_embeddings": 4096}
    for text in (short, short | {"sliding_window": 4096}):
        assert from_hf(LLAVA_HF_7B | {"text_config": text}).decoder.context == 4096
    for text in ({"model_type": "mistral"}, short | {"sliding_window": 4095}):
        with pytest.raises(InputError, match=r"text_config: sliding_window 409\d is not supported in"):
            from_hf(LLAVA_HF_7B | {"text_config": text})


def test_a_tower_of_defaults() -> None:
    """An empty object is a tower of CLIPVisionConfig's own defaults; a null, LLaVA-1.5's."""
    widths = [from_hf(LLAVA_HF_7B | {"vision_config": tower}).vision.hidden_size for tower in ({}, None)]
    assert widths == [768, 1024]


def test_a_model_without_a_padding_token() -> None:
    """A number of its own would keep the gradient from that token's embedding, which the official code trains."""
    without = {key: value for key, value in LLAVA_1_5_7B.items() if key != "pad_token_id"}
    for described in (without, without | {"pad_token_id": None}):
        found = from_hf(described, CLIP)
        assert found.text_prep.pad_id is None
        assert both_ways(found) == found


@pytest.mark.parametrize(("select", "features"), [("default", "patch"), ("full", "cls_patch")])
def test_feature_selection(select: str, features: str) -> None:
    found = from_hf(LLAVA_HF_7B | {"vision_feature_select_strategy": select, "vision_feature_layer": -1})
    assert (found.vision.select_feature, found.vision.select_layer) == (features, -1)


@pytest.mark.parametrize(
    ("preprocessor", "needle"),
    [
        ({"resample": 2}, "resample 2"),
        ({"do_center_crop": False}, "do_center_crop False"),
        ({"rescale_factor": 1.0}, "rescale_factor must be 1/255"),
        ({"crop_size": {"height": 336, "width": 224}}, "is not a square"),
        ({"crop_size": 224}, "the preprocessor's crop_size 224 is not the tower's image size 336"),
        ({"image_mean": [0.5]}, "image_mean must be three numbers"),
    ],
)
def test_preprocessors_that_are_not_clips(preprocessor: dict[str, Any], needle: str) -> None:
    with pytest.raises(InputError) as caught:
        from_hf(LLAVA_1_5_7B, CLIP, preprocessor)
    assert needle in str(caught.value)


def test_sizes_in_every_spelling() -> None:
    for size, crop in ((336, 336), ({"shortest_edge": 336}, {"height": 336, "width": 336})):
        assert from_hf(LLAVA_1_5_7B, CLIP, {"size": size, "crop_size": crop}) == presets.llava_1_5_7b()


def test_an_identity_projector_needs_equal_widths() -> None:
    config = {**LLAVA_1_5_7B, "mm_projector_type": "identity"}
    with pytest.raises(InputError, match="identity projector needs equal widths"):
        from_hf(config, CLIP)
    equal = {**config, "hidden_size": 1024, "num_attention_heads": 16, "num_key_value_heads": 16}
    assert from_hf(equal, CLIP).projector == IdentityProjector()


def test_the_longest_prompt_comes_from_where_it_is_written() -> None:
    assert from_hf(LLAVA_1_5_7B, CLIP).text_prep.max_length == 2048
    assert from_hf(LLAVA_HF_7B, tokenizer={"model_max_length": 1000}).text_prep.max_length == 1000
    assert from_hf(LLAVA_HF_7B, tokenizer={"model_max_length": 10**30}).text_prep.max_length == 4096
