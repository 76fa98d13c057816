"""The fused products against float64: run by the interpreter, and compiled for machines that are not here.

B rows, L layers, D hidden size, H query heads, G key/value heads, E head dimension, F hidden features of the MLP.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynllava_jax.analysis.aot import compile_ahead, described, memory, place, topology
from dynllava_jax.errors import InputError
from dynllava_jax.kernels.products import Kept, Products, fused_products
from tests.kernels.machines import A100, needs_compiler, strict

EPS = 1e-5
TOLERANCE = {"float32": 2e-6, "bfloat16": 1e-2}


class Sizes(NamedTuple):
    B: int
    D: int
    H: int
    G: int
    E: int
    F: int
    L: int = 3


class Layer(NamedTuple):
    """What one layer's products are made of."""

    x: Any
    scale: Any
    following: Any
    query: Any
    key: Any
    value: Any
    out: Any
    gate: Any
    up: Any
    down: Any
    cos: Any
    sin: Any


def shapes(sizes: Sizes) -> Layer:
    b, d, h, g, e, f, n = sizes
    products = ((d, h * e), (d, g * e), (d, g * e), (h * e, d), (d, f), (d, f), (f, d))
    return Layer._make([(b, d), (n, d), (n, d), *((n, *product) for product in products), (b, e), (b, e)])


def drawn(sizes: Sizes, dtype: str, seed: int) -> Layer:
    """Random numbers, weights of such a size that rows keep theirs; angles are those of both halves of a head."""
    keys = jax.random.split(jax.random.key(seed), len(Layer._fields))
    layer = Layer(*(jax.random.normal(key, shape) for key, shape in zip(keys, shapes(sizes), strict=True)))
    angle = jnp.concatenate([layer.cos[:, : sizes.E // 2]] * 2, axis=-1)
    weights = (x / np.sqrt(x.shape[1]) for x in layer[3:10])
    return Layer._make([*(x.astype(dtype) for x in (*layer[:3], *weights)), jnp.cos(angle), jnp.sin(angle)])


def fused(kernels: Products, layer: Layer, index: Any, ahead: int = 0) -> dict[str, Any]:
    begun = kernels.begin(layer.x, layer.scale[index])
    weights = (layer.query, layer.key, layer.value)
    kept = Kept(*(jnp.ones((each.shape[0], len(layer.x), each.shape[2]), layer.x.dtype) for each in weights[1:]))
    query, key, value, kept = kernels.rotated(begun, EPS, weights, layer.cos, layer.sin, index, kept)
    attended = kernels.added(begun, query, layer.out, index, layer.following, ahead)
    hidden = kernels.gated(attended, EPS, layer.gate, layer.up, index)
    both = kernels.added(attended, hidden, layer.down, index, layer.following, ahead)
    return {
        "query": query,
        "key": key,
        "value": value,
        "keys": kept.key,
        "values": kept.value,
        "attended": attended.x,
        "scaled": attended.scaled,
        "squares": jnp.sum(attended.squares, axis=1),
        "hidden": hidden,
        "both": both.x,
    }


def truth(layer: Layer, index: int, found: dict[str, Any], ahead: int = 0) -> dict[str, np.ndarray]:
    """In float64, rounded where the kernels round; what follows on something is made of what was found."""
    x, scale, following, query, key, value, out, gate, up, down, cos, sin = (np.asarray(a, np.float64) for a in layer)
    wide = {name: np.asarray(each, np.float64) for name, each in found.items()}
    after = wide["attended"]

    def rounded(x: np.ndarray) -> np.ndarray:
        return x.astype(layer.x.dtype).astype(np.float64)

    def normed(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return rounded(x * scale) / np.sqrt(np.mean(x**2, axis=1, keepdims=True) + EPS)

    def rotated(weight: np.ndarray) -> np.ndarray:
        heads = rounded(normed(x, scale[index]) @ weight[index]).reshape(len(x), -1, cos.shape[1])
        first, second = np.split(heads, 2, axis=-1)
        turned = np.concatenate([-second, first], axis=-1)
        return (heads * cos[:, None] + turned * sin[:, None]).reshape(len(x), -1)

    next_scale = following[min(index + ahead, len(following) - 1)]
    opened, upper = (rounded(normed(after, next_scale) @ weight[index]) for weight in (gate, up))

    def kept(one: np.ndarray) -> np.ndarray:
        return np.stack([one if at == index else np.ones_like(one) for at in range(len(scale))])

    return {
        "query": rotated(query),
        "key": rotated(key),
        "value": normed(x, scale[index]) @ value[index],
        "keys": kept(wide["key"]),
        "values": kept(wide["value"]),
        "attended": x + wide["query"] @ out[index],
        "scaled": after * next_scale,
        "squares": np.sum(after**2, axis=1),
        "hidden": opened / (1 + np.exp(-opened)) * upper,
        "both": after + wide["hidden"] @ down[index],
    }


@pytest.mark.slow
@settings(max_examples=8, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_shape(dtype: str, data: st.DataObject) -> None:
    groups, ratio = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 3))
    rows, width, hidden = (data.draw(st.integers(1, most)) for most in (16, 300, 200))
    sizes = Sizes(rows, width, groups * ratio, groups, data.draw(st.sampled_from((16, 48, 64, 128))), hidden)
    index = data.draw(st.integers(0, sizes.L - 1))
    layer, ahead = drawn(sizes, dtype, data.draw(st.integers(0, 9))), data.draw(st.integers(0, 1))
    found = fused(Products(interpret=True), layer, jnp.int32(index), ahead)
    for name, wanted in truth(layer, index, found, ahead).items():
        assert found[name].dtype == ("float32" if name == "squares" else dtype)
        np.testing.assert_allclose(
            np.asarray(found[name], np.float64), wanted, rtol=0, atol=TOLERANCE[dtype] * max(1.0, np.abs(wanted).max())
        )


def test_what_is_not_served_is_said() -> None:
    kernels = Products(interpret=True)
    kernels.check(16, jnp.dtype("float32"), 64)
    with pytest.raises(NotImplementedError, match="up to 16 rows, not 17"):
        kernels.check(17, jnp.dtype("float32"), 64)
    with pytest.raises(NotImplementedError, match="not float16"):
        kernels.check(1, jnp.dtype("float16"), 64)
    with described(A100):
        Products().check(1, jnp.dtype("bfloat16"), 96)
        with pytest.raises(NotImplementedError, match="multiples of 32, not 80"):
            Products().check(1, jnp.dtype("bfloat16"), 80)
        with pytest.raises(NotImplementedError, match="multiplies bfloat16 on tensor cores, not float32"):
            Products().check(1, jnp.dtype("float32"), 64)


def test_names() -> None:
    assert fused_products(None) is None
    assert fused_products("triton") == Products()
    with pytest.raises(InputError, match="no implementation 'fast'; there are triton, triton-interpret"):
        fused_products("fast")


@pytest.mark.aot
@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=needs_compiler(name)) for name in ("a100:1x1", "h100:1x1", "h200:1x1")]
)
@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(1, 4096, 32, 32, 128, 11008),
        Sizes(16, 4096, 32, 32, 128, 11008),
        Sizes(1, 8192, 64, 8, 128, 28672),
        Sizes(3, 1536, 16, 4, 96, 4000),
    ],
    ids=str,
)
def test_it_compiles_and_copies_nothing(name: str, sizes: Sizes) -> None:
    device = topology(name)[0]
    layer = Layer(
        *(
            place(jax.ShapeDtypeStruct(shape, "float32" if field in ("cos", "sin") else "bfloat16"), device)
            for field, shape in zip(Layer._fields, shapes(sizes), strict=True)
        )
    )
    index = place(jax.ShapeDtypeStruct((), "int32"), device)
    compiled = compile_ahead(
        lambda layer, index: fused(Products(), layer, index), layer, index, compiler_options=strict(name)
    )
    assert memory(compiled).temporaries < 2**20
