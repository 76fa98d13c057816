"""The kernels for whole sequences, lowered and compiled for machines that are not here.

B batch, H query heads, G key/value heads, S sequence, E head dimension.
"""

import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from dynllava_jax.analysis.aot import compile_ahead, described, memory, place, topology
from dynllava_jax.kernels import api
from tests.kernels.machines import A100, LOWERED, V5E, Described, needs_compiler, strict


def arguments(heads: int, groups: int, length: int, head_dim: int, dtype: Any, batch: int = 2) -> list[Any]:
    def of(*shape: int, dtype: Any = dtype) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), dtype)

    query, key = of(heads, length, head_dim), of(groups, length, head_dim)
    return [query, key, key, of(length, dtype=jnp.float32), of(dtype=jnp.int32), query]


def both(hide: bool, implementation: api.Implementation = None) -> Callable[..., Any]:
    """Output and gradients; by default by whatever the door takes for the platform."""

    def run(*args: jax.Array) -> Any:
        *inputs, lengths, cotangent = args

        def attend(query: jax.Array, key: jax.Array, value: jax.Array, policy: jax.Array) -> jax.Array:
            if hide:
                return api.attention(query, key, value, keep=policy > 0, implementation=implementation)
            return api.policy_attention(query, key, value, policy, lengths, implementation=implementation)

        out, pull = jax.vjp(attend, *inputs)
        return out, pull(cotangent)

    return run


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("hide", [False, True], ids=["policy", "plain"])
@pytest.mark.parametrize("many", [False, True], ids=["", "vmap"])
@pytest.mark.parametrize(("device", "platform"), [(A100, "cuda"), (V5E, "tpu")], ids=["cuda", "tpu"])
def test_lowering(device: Described, platform: str, many: bool, hide: bool, dtype: str) -> None:
    args = arguments(4, 2, 300, 80, dtype)
    if many:
        args = [jax.ShapeDtypeStruct((3, *x.shape), x.dtype) for x in args]
    function = jax.vmap(both(hide)) if many else both(hide)
    with described(device):
        text = jax.jit(function).trace(*args).lower(lowering_platforms=(platform,)).as_text()
    assert text.count(LOWERED[platform]) >= 3


def temporaries(name: str, function: Callable[..., Any], args: list[Any], **options: Any) -> int:
    """Bytes besides arguments and results that a program takes on one device of a topology."""
    device = topology(name)[0]
    return memory(compile_ahead(function, *(place(x, device) for x in args), **options)).temporaries


def half(name: str, parity: int) -> list[Any]:
    """Half of the combinations of dtype, operation and head dimension; any two of these three meet."""
    found = itertools.product(enumerate(("bfloat16", "float32")), (False, True), enumerate((64, 80, 96, 128)))
    return [
        pytest.param(name, hide, head_dim, dtype, marks=[needs_compiler(name), pytest.mark.slow])
        for (i, dtype), hide, (j, head_dim) in found
        if (i + j + hide) % 2 == parity
    ]


@pytest.mark.aot
@pytest.mark.parametrize(
    ("name", "hide", "head_dim", "dtype"),
    [
        *half("a100:1x1", 0),
        *half("h100:1x1", 1),
        *half("v4:1x1x1", 0),
        *half("v5e:1x1", 1),
        *half("v5p:1x1x1", 1),
        *half("v6e:1x1", 0),
        # Its cores are those of an H100.
        pytest.param("h200:1x1", True, 96, "bfloat16", marks=needs_compiler("h200:1x1")),
    ],
)
def test_it_compiles_without_spills_and_holds_no_scores(name: str, hide: bool, head_dim: int, dtype: str) -> None:
    # So long that scores would not fit the fast memory of a TPU, which is not counted.
    batch, heads, length = 2, 8, 4000
    args = arguments(heads, 4, length, head_dim, dtype, batch)
    assert temporaries(name, both(hide), args, compiler_options=strict(name)) < batch * heads * length**2


PAPER = arguments(32, 32, 2048, 128, jnp.bfloat16, batch=4)


@pytest.mark.aot
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name, marks=[needs_compiler(name), *([] if name in ("a100:1x1", "v5e:1x1") else [pytest.mark.slow])]
        )
        for name in ("a100:1x1", "h100:1x1", "v4:1x1x1", "v5e:1x1", "v5p:1x1x1", "v6e:1x1")
    ],
)
def test_memory_of_policy_attention(name: str) -> None:
    assert temporaries(name, both(False), PAPER, compiler_options=strict(name)) <= 0.1 * 2**30


@pytest.mark.aot
@pytest.mark.slow
@needs_compiler("a100:1x1")
@pytest.mark.parametrize(("hide", "gib"), [(False, 0.72), (True, 0.77)], ids=["policy", "plain"])
def test_memory_of_chunks(hide: bool, gib: float) -> None:
    """Scores of one chunk, in float32, are 0.25 GiB of it."""
    assert temporaries("a100:1x1", both(hide, "chunked"), PAPER) <= gib * 2**30
