"""Golden 01 and the tower of golden 11.

N images, P patches, C features.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynllava_jax.config.decoder import DecoderConfig
from dynllava_jax.config.model import ImagePrep, ModelConfig
from dynllava_jax.config.presets import tiny
from dynllava_jax.config.vision import TokenPackerProjector, VisionConfig
from dynllava_jax.errors import InputError
from dynllava_jax.model.projector import make_projector
from dynllava_jax.model.vision import VisionOutput, VisionTower
from tests import golden_files
from tests.model.golden_weights import TOWER, checkpoint, fill_layer, fill_tower

TOLERANCE = 2e-5


def _with_vision(**changes: object) -> ModelConfig:
    config = tiny()
    return dataclasses.replace(config, vision=dataclasses.replace(config.vision, **changes))


def _tower(config: ModelConfig) -> VisionTower:
    tower = VisionTower(nnx.Rngs(params=0), config)
    fill_tower(tower, checkpoint(), TOWER)
    return tower


@pytest.fixture(scope="module")
def images() -> jax.Array:
    return jnp.asarray(golden_files.arrays("00_images")["a"]).transpose(0, 2, 3, 1)


def test_golden_tower_and_projector(images: jax.Array) -> None:
    golden = golden_files.arrays("01_vision_features")
    config = tiny()
    output = _tower(config)(images, hidden=True)
    assert output.hidden is not None
    assert output.hidden.shape[0] == 3, "the last of three layers is not read by anyone"
    for index, state in enumerate(output.hidden):
        np.testing.assert_allclose(state, golden[f"clip_hidden_{index}"], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(output.features, golden["selected_features"], atol=TOLERANCE, rtol=0)
    projector = make_projector(nnx.Rngs(params=0), config)
    for index in range(2):
        fill_layer(projector, f"layers/{index}", checkpoint(), f"model.mm_projector.{2 * index}")
    np.testing.assert_allclose(projector(output.features), golden["projected"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("layer", [-1, 0, 1, 3])
def test_select_layer(images: jax.Array, layer: int) -> None:
    config = _with_vision(select_layer=layer)
    tower = _tower(config)
    assert tower.num_layers == config.vision.select_index
    wanted = golden_files.arrays("01_vision_features")[f"clip_hidden_{config.vision.select_index}"][:, 1:]
    np.testing.assert_allclose(tower(images).features, wanted, atol=TOLERANCE, rtol=0)


def test_cls_patch(images: jax.Array) -> None:
    output = _tower(_with_vision(select_feature="cls_patch"))(images, attention=True)
    wanted = golden_files.arrays("01_vision_features")["clip_hidden_2"]
    np.testing.assert_allclose(output.features, wanted, atol=TOLERANCE, rtol=0)
    assert output.cls_attention is not None
    np.testing.assert_allclose(output.cls_attention.sum(axis=-1), 1.0, atol=1e-6)


def test_only_what_was_asked_for(images: jax.Array) -> None:
    output = _tower(tiny())(images)
    assert output[1:] == (None, None, None)


def test_cls_attention_is_that_of_the_selected_layer(images: jax.Array) -> None:
    tower = _tower(tiny())
    output = tower(images, attention=True, hidden=True)
    assert output.cls_attention is not None
    assert output.hidden is not None
    assert output.cls_attention.shape == (2, 4, 16)
    layer = jax.tree.map(lambda leaf: leaf[1], tower.layers)
    x = layer.norm1(output.hidden[1])
    # The same by the definition, one head at a time.
    for head in range(4):
        part = slice(8 * head, 8 * head + 8)
        query, key = layer.attention.query(x)[:, 0, part], layer.attention.key(x)[..., part]
        weights = jax.nn.softmax(jnp.einsum("ne,nte->nt", query, key) / 8**0.5)
        np.testing.assert_allclose(output.cls_attention[:, head], weights[:, 1:], atol=1e-6)
    np.testing.assert_allclose(output.features, tower(images).features, atol=1e-6)


def test_attention_of_no_layer_is_refused(images: jax.Array) -> None:
    with pytest.raises(InputError, match="select_layer"):
        _tower(_with_vision(select_layer=0))(images, attention=True)


def test_levels_above_the_selected_layer(images: jax.Array) -> None:
    config = dataclasses.replace(
        _with_vision(select_layer=1), projector=TokenPackerProjector(scale=2, width=32, num_heads=4, levels=(3, 0, 2))
    )
    output = _tower(config)(images)
    golden = golden_files.arrays("01_vision_features")
    np.testing.assert_allclose(output.features, golden["clip_hidden_1"][:, 1:], atol=TOLERANCE, rtol=0)
    assert output.levels is not None
    for level, state in zip((3, 0, 2), output.levels, strict=True):
        np.testing.assert_allclose(state, golden[f"clip_hidden_{level}"][:, 1:], atol=TOLERANCE, rtol=0)


def test_golden_token_packer_tower() -> None:
    golden, info = golden_files.arrays("11_tokenpacker"), golden_files.info("11_tokenpacker")["info"]
    config = ModelConfig(
        vision=VisionConfig(hidden_size=8, intermediate_size=16, num_heads=2),
        projector=TokenPackerProjector(width=8, num_heads=2),
        decoder=DecoderConfig(num_layers=4),
    )
    weights, start = {}, 0
    for name, shape in info["tower_params"]:
        size = int(np.prod(shape))
        weights[name] = golden["tower.params_flat"][start : start + size].reshape(shape)
        start += size
    tower = VisionTower(nnx.Rngs(params=0), config)
    fill_tower(tower, weights, "vision_model.")
    low = golden["tower.low_int8"].astype(np.float32) / 16
    pattern = golden["tower.pat_int8"].astype(np.float32) / 16
    pixels = np.repeat(np.repeat(low, 14, axis=1), 14, axis=2) * np.tile(pattern, (1, 24, 24))
    output: VisionOutput = jax.jit(lambda tower, images: tower(images))(tower, pixels.transpose(1, 2, 0)[None])
    np.testing.assert_allclose(output.features, golden["tower.x"], atol=TOLERANCE, rtol=0)
    assert output.levels is not None
    multi = np.concatenate(output.levels, axis=-1)
    np.testing.assert_allclose(multi, golden["tower.x_multi"], atol=TOLERANCE, rtol=0)


def test_rest_of_an_image_that_patches_do_not_cover_is_ignored() -> None:
    vision = dataclasses.replace(tiny().vision, image_size=60)
    config = dataclasses.replace(tiny(), vision=vision, image_prep=ImagePrep(resize=60, crop=60))
    tower = VisionTower(nnx.Rngs(params=0), config)
    pixels = jax.random.normal(jax.random.key(1), (1, 60, 60, 3))
    np.testing.assert_array_equal(
        tower(pixels).features, tower(pixels.at[:, 56:].set(9.0).at[:, :, 56:].set(9.0)).features
    )


def test_bfloat16_stays_bfloat16_and_close(images: jax.Array) -> None:
    tower = _tower(tiny())
    low = tower(images.astype(jnp.bfloat16)).features
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), tower(images).features, atol=0.1)


@pytest.mark.parametrize(
    ("field", "value"),
    [("norm_eps", 0.1), ("activation", "gelu"), ("num_heads", 2), ("select_layer", 1), ("intermediate_size", 32)],
)
def test_every_field_reaches_the_tower(images: jax.Array, field: str, value: object) -> None:
    features = []
    for config in (tiny(), _with_vision(**{field: value})):
        tower = jax.tree.map(lambda leaf: 10 * leaf, VisionTower(nnx.Rngs(params=0), config))
        features.append(tower(images).features)
    assert not np.allclose(*features, rtol=1e-3)
