"""Weights in pieces: the products are those of the whole matrices, and no layer is copied."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynllava_jax.analysis.aot import memory
from dynllava_jax.nn import pieces
from dynllava_jax.nn.linear import multiply
from dynllava_jax.nn.pieces import Pieces, kernel_in_pieces, layer_in_pieces
from dynllava_jax.sharding.xla_options import xla_options
from dynllava_jax.testing import tiny_config, tiny_model


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 70),
    st.integers(1, 9),
    st.lists(st.integers(1, 3), max_size=2),
    st.integers(0, 2),
    st.sampled_from([("float32", 1e-6), ("bfloat16", 8e-3), ("float16", 1e-3)]),
)
def test_a_product_is_that_of_the_whole_matrix(
    inputs: int, outputs: int, leading: list[int], layer: int, kind: tuple[str, float]
) -> None:
    dtype, tolerance = kind
    rng = np.random.default_rng(inputs)
    stack = jnp.asarray(rng.standard_normal((3, inputs, outputs)), dtype)
    x = jnp.asarray(rng.standard_normal((*leading, inputs)), dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "_ROWS", 16)
        y = multiply(x, Pieces(stack, jnp.int32(layer)))
    exact = np.asarray(x, np.float64) @ np.asarray(stack[layer], np.float64)
    assert y.dtype == x.dtype
    assert y.shape == exact.shape
    np.testing.assert_allclose(np.asarray(y, np.float64), exact, rtol=0, atol=tolerance * max(1, np.abs(exact).max()))


def test_only_large_kernels_are_left_in_their_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = tiny_model(tiny_config()).decoder.deep
    whole = layer_in_pieces(layers, jnp.int32(1))
    np.testing.assert_array_equal(whole.mlp.up.kernel[...], layers.mlp.up.kernel[1])
    monkeypatch.setattr(pieces, "_LEAST", layers.mlp.up.kernel[0].size)
    cut = layer_in_pieces(layers, jnp.int32(1))
    assert isinstance(cut.mlp.up.kernel[...], Pieces)
    np.testing.assert_array_equal(cut.attention.query.kernel[...], layers.attention.query.kernel[1])
    np.testing.assert_array_equal(cut.mlp_norm.scale[...], layers.mlp_norm.scale[1])


@pytest.mark.parametrize(
    ("size", "dtype", "in_pieces"), [(8, "bfloat16", True), (7, "bfloat16", False), (8, "float32", False)]
)
def test_a_matrix_without_a_stack(size: int, dtype: str, in_pieces: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "_LEAST", 64)
    kernel = jnp.asarray(np.random.default_rng(0).standard_normal((size, 8)), dtype)
    given_back = kernel_in_pieces(kernel)
    assert isinstance(given_back, Pieces) is in_pieces
    x = jnp.ones((2, size), dtype)
    got, wanted = (np.asarray(multiply(x, k), np.float32) for k in (given_back, kernel))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=0.02)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_no_layer_is_copied(dtype: str) -> None:
    stack = jax.ShapeDtypeStruct((4, 2048, 1024), dtype)
    x = jax.ShapeDtypeStruct((1, 2048), dtype)

    def all_layers(x: jax.Array, stack: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, 4, lambda i, y: y + multiply(x, Pieces(stack, i)), jnp.zeros((1, 1024), dtype))

    options = xla_options(jax.devices("cpu")[0], dtype)
    compiled = jax.jit(all_layers, compiler_options=options).lower(x, stack).compile()
    assert memory(compiled).temporaries < 2048 * 1024 * 4 / 4


def test_it_is_a_tree() -> None:
    one = Pieces(jnp.ones((2, 3, 4)), jnp.int32(1))
    leaves, structure = jax.tree.flatten(one)
    again = jax.tree.unflatten(structure, leaves)
    assert again.stack is one.stack
    assert again.layer is one.layer
