import pytest

from dynllava_jax.config import presets
from dynllava_jax.config.presets import PRESETS, get_preset
from dynllava_jax.errors import InputError


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_hashable_constants(name: str) -> None:
    assert get_preset(name) == get_preset(name)
    assert hash(get_preset(name)) == hash(PRESETS[name]())


@pytest.mark.parametrize(
    ("name", "decoder_parameters"),
    [
        ("llava_1_5_7b", 6_738_415_616),
        ("llava_1_5_13b", 13_015_864_320),
        ("dynamic_llava_34b", 34_388_917_248),
        ("dynamic_llava_70b", 68_976_648_192),
    ],
)
def test_decoder_shapes_have_the_published_size(name: str, decoder_parameters: int) -> None:
    config = get_preset(name).decoder
    attention = 2 * config.hidden_size * (config.num_heads + config.num_kv_heads) * config.head_dim
    mlp = 3 * config.hidden_size * config.intermediate_size
    layer = attention + mlp + 2 * config.hidden_size
    embeddings = 2 * config.vocab_size * config.hidden_size
    assert config.num_layers * layer + embeddings + config.hidden_size == decoder_parameters


def test_published_keep_rates() -> None:
    config = presets.dynamic_llava_7b()
    assert (config.image_tokens, config.kept_image_tokens, config.layers_used) == (576, 115, 23)
    assert (config.sparsity.sparse_layer, config.sparsity.output_keep_rate) == (2, 0.5)
    packed = presets.dynamic_tokenpacker_7b()
    assert (packed.image_tokens, packed.kept_image_tokens) == (144, 57)
    dense = presets.llava_1_5_7b()
    assert dense.kept_image_tokens == 576
    assert dense.sparsity.output_selector is None


def test_tiny_is_tiny() -> None:
    config = presets.tiny()
    assert (config.image_tokens, config.kept_image_tokens, config.layers_used) == (16, 6, 2)


@pytest.mark.parametrize(
    ("name", "near"), [("dynamic-llava-7b", "dynamic_llava_7b"), ("LLaVA_1_5_13", "llava_1_5_13b"), ("tinny", "tiny")]
)
def test_unknown_name_gets_the_nearest(name: str, near: str) -> None:
    with pytest.raises(InputError, match=f"did you mean {near}"):
        get_preset(name)


def test_unknown_name_without_a_near_one_gets_the_list() -> None:
    with pytest.raises(InputError, match="There are llava_1_5_7b, "):
        get_preset("zzz")
