"""The table covers every leaf of every preset once, and each of its steps can be undone."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynllava_jax.checkpoint.leaves import leaf_shapes
from dynllava_jax.config import presets
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.vision import IdentityProjector, MlpProjector, TokenPackerProjector
from dynllava_jax.convert.table import (
    LAYOUTS,
    LLAVA_HF,
    OFFICIAL,
    TOWER_ALONE,
    carried_in_tower,
    decoder_rules,
    tower_rules,
)
from dynllava_jax.convert.transform import FlattenPatch, Keep, Transform, Transpose

TINY = presets.tiny()


@pytest.mark.parametrize(
    "config",
    [
        presets.dynamic_llava_7b(),
        presets.dynamic_llava_13b(),
        dataclasses.replace(presets.dynamic_llava_7b(), projector=TokenPackerProjector()),
        dataclasses.replace(presets.dynamic_llava_7b(), projector=MlpProjector(4)),
        dataclasses.replace(TINY, decoder=dataclasses.replace(TINY.decoder, attention_bias=True)),
        dataclasses.replace(TINY, decoder=dataclasses.replace(TINY.decoder, tie_embeddings=True)),
        dataclasses.replace(
            TINY, projector=IdentityProjector(), vision=dataclasses.replace(TINY.vision, hidden_size=64)
        ),
    ],
)
def test_every_leaf_has_exactly_one_source(config: ModelConfig) -> None:
    rules = decoder_rules(OFFICIAL, config) + tower_rules(OFFICIAL.towers[0], config)
    wanted = leaf_shapes(config)
    assert sorted(rule.leaf for rule in rules if rule.leaf in wanted) == sorted(wanted)
    sources = [rule.source for rule in rules]
    assert len(sources) == len(set(sources))


def test_every_layout_fills_a_dense_model() -> None:
    config = dataclasses.replace(TINY, sparsity=TINY.sparsity.dense())
    for layout in LAYOUTS:
        for prefix in layout.towers:
            rules = decoder_rules(layout, config) + tower_rules(prefix, config)
            assert {rule.leaf for rule in rules} >= set(leaf_shapes(config))


def test_a_single_linear_projector_in_both_spellings() -> None:
    config = dataclasses.replace(TINY, projector=MlpProjector(1))
    names = [rule.source for rule in decoder_rules(OFFICIAL, config) if rule.leaf == "projector/layers/0/kernel"]
    assert names == ["model.mm_projector.weight", "model.mm_projector.0.weight"]
    for single, name in zip(("linear", "mlp1x_gelu"), names, strict=True):
        (rule,) = (r for r in decoder_rules(OFFICIAL, config, single) if r.leaf == "projector/layers/0/kernel")
        assert rule.source == name


@pytest.mark.parametrize("prefix", [*TOWER_ALONE, *OFFICIAL.towers, *LLAVA_HF.towers])
def test_what_is_carried_of_a_tower(prefix: str) -> None:
    carried = ["encoder.layers.2.mlp.fc1.weight", "post_layernorm.bias", "embeddings.position_ids"]
    used = ["encoder.layers.1.mlp.fc1.weight", "encoder.layers.3.mlp.fc1.weight", "pre_layrnorm.bias", "head.weight"]
    assert all(carried_in_tower(prefix, TINY, prefix + name) for name in carried)
    assert not any(carried_in_tower(prefix, TINY, prefix + name) for name in used)


@given(
    step=st.sampled_from([(Keep(), (7,)), (Keep(), (3, 4)), (Transpose(), (3, 5)), (FlattenPatch(), (6, 3, 4, 4))]),
    dtype=st.sampled_from([np.float32, np.float16, ml_dtypes.bfloat16]),
    seed=st.integers(0, 2**32 - 1),
)
def test_transforms_can_be_undone_bit_by_bit(step: tuple[Transform, tuple[int, ...]], dtype: type, seed: int) -> None:
    transform, shape = step
    bits = np.random.default_rng(seed).integers(0, 256, (*shape, np.dtype(dtype).itemsize), np.uint8)
    tensor = bits.view(dtype)[..., 0]
    leaf = transform.apply(tensor)
    assert leaf.shape == transform.shape(shape)
    back = np.ascontiguousarray(transform.invert(leaf))
    np.testing.assert_array_equal(back[..., None].view(np.uint8), bits)


def test_shapes_that_do_not_fit_a_transform() -> None:
    assert Transpose().shape((3,)) is None
    assert FlattenPatch().shape((6, 4, 4, 4)) is None
    assert FlattenPatch().shape((6, 3, 4, 5)) is None
