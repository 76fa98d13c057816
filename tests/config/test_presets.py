import math
from collections import Counter

import pytest
from flax import nnx

from dynllava_jax.checkpoint.leaves import abstract_model
from dynllava_jax.config import presets
from dynllava_jax.config.presets import PRESETS, get_preset
from dynllava_jax.errors import InputError


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_hashable_constants(name: str) -> None:
    assert get_preset(name) == get_preset(name)
    assert hash(get_preset(name)) == hash(PRESETS[name]())


TOWER = 303_507_456 - 12_596_224 - 2_048
"""CLIP-L/14 at 336 pixels, without the last layer and the final norm, which nobody reads."""

SIZES: dict[str, dict[str, int]] = {
    "llava_1_5_7b": {"decoder": 6_738_415_616, "projector": 20_979_712},
    "llava_1_5_13b": {"decoder": 13_015_864_320, "projector": 31_467_520},
    "dynamic_llava_7b": {
        "decoder": 6_738_415_616,
        "projector": 20_979_712,
        "image_predictor": 8_572_034,
        "output_predictor": 2_270_338,
    },
    "dynamic_llava_13b": {
        "decoder": 13_015_864_320,
        "projector": 31_467_520,
        "image_predictor": 9_098_370,
        "output_predictor": 2_796_674,
    },
    "dynamic_llava_34b": {
        "decoder": 34_388_917_248,
        "projector": 58_734_592,
        "image_predictor": 10_151_042,
        "output_predictor": 3_849_346,
    },
    "dynamic_llava_70b": {
        "decoder": 68_976_648_192,
        "projector": 75_513_856,
        "image_predictor": 10_677_378,
        "output_predictor": 4_375_682,
    },
}


@pytest.mark.parametrize("name", SIZES)
def test_built_at_full_size_every_part_has_the_published_number_of_parameters(name: str) -> None:
    found: Counter[str] = Counter()
    for path, leaf in nnx.to_flat_state(nnx.state(abstract_model(get_preset(name)))):
        found[str(path[0])] += math.prod(leaf.shape)
    assert found == {"vision": TOWER, **SIZES[name]}


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


@pytest.mark.usefixtures("unchecked")
def test_unknown_name_without_a_near_one_gets_the_list() -> None:
    with pytest.raises(InputError, match="The name of a preset must be str, not None"):
        get_preset(None)  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="there are llava_1_5_7b, "):
        get_preset("zzz")
