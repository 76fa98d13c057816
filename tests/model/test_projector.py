"""TokenPacker against golden 11 and against interpolation by its definition; the plain projectors.

N images, P patches, Q image tokens, C features.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from dynllava_jax.config.presets import tiny
from dynllava_jax.config.vision import IdentityProjector, MlpProjector, TokenPackerProjector
from dynllava_jax.model import token_packer
from dynllava_jax.model.projector import make_projector
from dynllava_jax.model.token_packer import TokenPacker
from tests import golden_files
from tests.model.golden_weights import fill_token_packer

TOLERANCE = 2e-5


def _levels(multi: np.ndarray) -> list[jax.Array]:
    return jnp.split(jnp.asarray(multi, jnp.float32), 4, axis=-1)


def _close(actual: jax.Array, wanted: np.ndarray) -> None:
    np.testing.assert_allclose(actual, wanted, atol=TOLERANCE * max(1.0, float(np.abs(wanted).max())), rtol=0)


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_golden_small(scale: int) -> None:
    golden = golden_files.arrays("11_tokenpacker")
    packer = TokenPacker(nnx.Rngs(params=0), TokenPackerProjector(scale=scale, width=32, num_heads=4), 24, 32, 64)
    prefix = "small.param."
    fill_token_packer(packer, {name.removeprefix(prefix): golden[name] for name in golden if prefix in name})
    wanted = golden[f"small.out_scale{scale}"]
    features = jnp.asarray(golden["small.x_int8"][: len(wanted)], jnp.float32) / 4
    _close(jax.jit(packer.__call__)(features, _levels(golden["small.x_multi_int8"][: len(wanted)] / 4)), wanted)


def test_golden_full_size() -> None:
    draw = np.random.RandomState(12345).standard_normal
    weights = {}
    for name, shape in golden_files.info("11_tokenpacker")["info"]["full_parameter_order_and_shape"]:
        noise = draw(shape).astype(np.float32)
        if name.startswith("ln_") and name.endswith("weight"):
            weights[name] = np.float32(1) + np.float32(0.1) * noise
        elif noise.ndim == 1:
            weights[name] = np.float32(0.1) * noise
        else:
            weights[name] = noise / np.float32(np.sqrt(shape[-1]))
    features = draw((1, 576, 1024)).astype(np.float32)
    multi = draw((1, 576, 4096)).astype(np.float32)
    packer = TokenPacker(nnx.Rngs(params=0), TokenPackerProjector(), 24, 1024, 64)
    fill_token_packer(packer, weights)
    _close(packer(jnp.asarray(features), _levels(multi)), golden_files.arrays("11_tokenpacker")["full.out"])


@pytest.mark.parametrize(("side", "scale"), [(3, 1), (2, 2), (1, 3), (2, 4), (2, 5), (3, 6)])
def test_query_is_the_bilinear_shrink(side: int, scale: int) -> None:
    grid = side * scale
    features = np.random.default_rng(scale).standard_normal((grid * grid, 3))
    shrunk = token_packer._middle(token_packer._cells(jnp.asarray(features, jnp.float32), side, scale), scale)
    weights = _bilinear(grid, side)
    wanted = np.einsum("ia,jb,abc->ijc", weights, weights, features.reshape(grid, grid, 3))
    np.testing.assert_allclose(shrunk, wanted.reshape(side * side, 3), atol=1e-5)


def _bilinear(inputs: int, outputs: int) -> np.ndarray:
    """Torch's `interpolate` along one side, align_corners False."""
    weights = np.zeros((outputs, inputs))
    for index in range(outputs):
        source = max((index + 0.5) * inputs / outputs - 0.5, 0.0)
        low = int(source)
        weights[index, low] += 1 - (source - low)
        weights[index, min(low + 1, inputs - 1)] += source - low
    return weights


def test_a_token_reads_its_own_cell_only() -> None:
    packer = TokenPacker(nnx.Rngs(params=0), TokenPackerProjector(scale=2, width=8, num_heads=2), 4, 3, 4)
    level = jax.random.normal(jax.random.key(0), (16, 3))
    features = jax.random.normal(jax.random.key(1), (16, 3))
    before = packer(features, [level] * 4)
    after = packer(features, [level.at[7].add(1.0)] * 4)  # row 1, column 3: cell 1
    changed = np.any(np.asarray(before != after), axis=-1)
    np.testing.assert_array_equal(changed, [False, True, False, False])


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_mlp_depth(depth: int) -> None:
    projector: Any = make_projector(nnx.Rngs(params=0), dataclasses.replace(tiny(), projector=MlpProjector(depth)))
    assert [layer.kernel.shape for layer in projector.layers] == [(32, 64), (64, 64), (64, 64)][:depth]
    assert projector(jnp.ones((2, 3, 16, 32))).shape == (2, 3, 16, 64)


def test_identity_has_no_parameters() -> None:
    config = tiny()
    vision = dataclasses.replace(config.vision, hidden_size=64)
    projector = make_projector(
        nnx.Rngs(params=0), dataclasses.replace(config, vision=vision, projector=IdentityProjector())
    )
    features = jnp.ones((2, 16, 64))
    assert jax.tree.leaves(projector) == []
    np.testing.assert_array_equal(projector(features), features)


def test_token_packer_of_the_config() -> None:
    config = dataclasses.replace(tiny(), projector=TokenPackerProjector(scale=2, width=16, num_heads=4, levels=(1, 2)))
    projector = make_projector(nnx.Rngs(params=0), config)
    assert isinstance(projector, TokenPacker)
    features = jnp.ones((3, 16, 32))
    assert projector(features, (features, features)).shape == (3, config.image_tokens, 64)
    with pytest.raises(ValueError, match="levels"):
        projector(features)
