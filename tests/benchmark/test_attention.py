"""What the attention benchmark compares computes the same, and what it says of given seconds is arithmetic."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynllava_jax.benchmark import attention
from dynllava_jax.benchmark.attention import AttentionShape, Contender, door, make_inputs, ratio, references
from dynllava_jax.benchmark.timing import Machine
from dynllava_jax.errors import InputError
from dynllava_jax.kernels import xla

MACHINE = Machine("NVIDIA H200", "gpu", flops=8e6, bandwidth=1e6)


def run(contender: Contender) -> jax.Array:
    return contender.function(*contender.inputs)


@pytest.mark.parametrize("operation", ["causal", "policy"])
def test_the_reference_computes_the_same(operation: str) -> None:
    inputs = make_inputs(operation, AttentionShape(1, 4, 2, 9, 8), "float32")
    theirs = run(references(operation, inputs)["jax_xla"]).swapaxes(1, 2)
    np.testing.assert_allclose(theirs, run(door(operation, "xla", inputs)), atol=1e-5)


def test_the_reference_of_decoding_reads_the_whole_cache() -> None:
    inputs = make_inputs("decode", AttentionShape(1, 4, 2, 9, 8), "float32")
    query, ((keys, values),) = inputs[0], inputs[3]
    theirs = run(references("decode", inputs)["jax_xla"]).swapaxes(1, 2)
    ours = xla.attention(*(jnp.broadcast_to(query, (1, 4, 9, 8)), keys[0], values[0]))[:, :, -1:]
    np.testing.assert_allclose(theirs, ours, atol=1e-5)


@pytest.mark.parametrize(("operation", "count"), [("causal", 3), ("policy", 4)])
def test_both_ways_gives_the_output_and_every_gradient(operation: str, count: int) -> None:
    inputs = make_inputs(operation, AttentionShape(1, 4, 2, 9, 8), "float32")
    contender = door(operation, "xla", inputs)
    cotangent = jax.random.normal(jax.random.key(3), inputs[0].shape)
    out, gradients = contender.both(cotangent, *inputs)
    np.testing.assert_array_equal(out, run(contender))

    def loss(*trained: jax.Array) -> jax.Array:
        return jnp.sum(contender.function(*trained, *inputs[count:]) * cotangent)

    wanted = jax.grad(loss, argnums=tuple(range(count)))(*inputs[:count])
    assert len(gradients) == count
    for ours, theirs in zip(gradients, wanted, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
        assert jnp.any(ours != 0)  # that of the policy too


def test_bytes_are_those_of_arguments_and_results() -> None:
    shape = AttentionShape(1, 4, 2, 8, 16)
    query, key = 4 * 8 * 16 * 4, 2 * 8 * 16 * 4
    causal = door("causal", "xla", make_inputs("causal", shape, "float32"))
    assert causal.bytes(both=False) == query + 2 * key + query
    assert causal.bytes(both=True) == 3 * query + 2 * key + query + 2 * key
    policy, lengths = 8 * 4, 4
    masked = door("policy", "xla", make_inputs("policy", shape, "float32"))
    assert masked.bytes(both=False) == causal.bytes(both=False) + policy + lengths
    assert masked.bytes(both=True) == causal.bytes(both=True) + 2 * policy + lengths
    inputs = make_inputs("decode", shape, "float32")
    assert references("decode", inputs)["jax_xla"].bytes(both=False) == 2 * 4 * 16 * 4 + 2 * key


def test_numbers_of_given_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([2.0, 4.0, 1.0, 8.0, 4.0, 5.0, 0.5, 2.0])

    def given(function: Callable[..., Any], *args: Any, least: float) -> float:
        return next(seconds)

    monkeypatch.setattr(attention, "measure", given)
    shape = AttentionShape(1, 4, 2, 8, 16)
    records = attention.bench_attention("causal", shape, "float32", MACHINE, names=("xla",))
    jax_xla, cudnn, chunked, ours = records
    flops, nbytes = 4 * 4 * 16 * 8 * 9 / 2, (4 + 2 + 2 + 4) * 8 * 16 * 4
    assert [record["implementation"] for record in (jax_xla, cudnn, chunked)] == ["jax_xla", "jax_cudnn", "chunked"]
    assert ours["forward_seconds"] == 0.5
    assert ours["forward_tflops"] == pytest.approx(flops / 0.5 / 1e12)
    assert ours["forward_share_of_matmul"] == pytest.approx(flops / 0.5 / 8e6)
    assert ours["forward_gb_per_second"] == pytest.approx(nbytes / 0.5 / 1e9)
    assert ours["forward_share_of_bandwidth"] == pytest.approx(nbytes / 0.5 / 1e6)
    assert ours["both_share_of_matmul"] == pytest.approx(3.5 * flops / 2.0 / 8e6)
    assert ours["both_share_of_bandwidth"] == pytest.approx(2 * nbytes / 2.0 / 1e6)
    assert ours["ratio_to_jax_xla"] == {"forward": 4.0, "both": 2.0}
    assert ours["ratio_to_jax_cudnn"] == {"forward": 2.0, "both": 4.0}
    assert ours["ratio_to_chunked"] == {"forward": 8.0, "both": 2.5}


def test_decoding_counts_the_keys_that_each_one_meets(monkeypatch: pytest.MonkeyPatch) -> None:
    """`jax.nn` reads the cache alone, the door's functions meet the token's own key and value too."""
    monkeypatch.setattr(attention, "measure", lambda function, *args, least: 1.0)
    shape = AttentionShape(3, 4, 2, 7, 16)
    query, own, cache = 3 * 4 * 16 * 4, 2 * 3 * 2 * 16 * 4, 2 * 3 * 2 * 7 * 16 * 4
    for record in attention.bench_attention("decode", shape, "float32", MACHINE, names=("xla",)):
        theirs = record["implementation"].startswith("jax_")
        assert record["forward_tflops"] == pytest.approx(4 * 3 * 4 * 16 * (7 if theirs else 8) / 1e12)
        moved = 2 * query + cache + (0 if theirs else own + 4 + 3 * 4)  # the layer's number, three lengths
        assert record["forward_gb_per_second"] == pytest.approx(moved / 1e9)


def test_what_the_door_would_not_take_here_is_no_reason_to_end() -> None:
    """As here, which is no GPU: not every GPU has the kernel, nor every shape."""
    shape, machine = AttentionShape(1, 2, 1, 8, 16), Machine("NVIDIA L4", "gpu", 1.0, 1.0)
    records = list(attention.bench_attention("causal", shape, "float32", machine, least=0.0))
    found = {record["implementation"]: record for record in records}
    assert list(found) == ["jax_xla", "jax_cudnn", "chunked", "triton", "xla"]
    assert "triton: it runs on a gpu only, not on a cpu" in found["triton"]["failed"]
    assert found["xla"]["both_seconds"] > 0
    with pytest.raises(InputError, match="triton runs on a gpu only"):
        list(attention.bench_attention("causal", shape, "float32", machine, names=("triton",), least=0.0))


def test_a_backward_pass_that_fails_leaves_the_forward_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def given(function: Callable[..., Any], *args: Any, least: float) -> float:
        if len(args) > 3:
            raise RuntimeError("out of memory")
        return 1.0

    monkeypatch.setattr(attention, "measure", given)
    shape = AttentionShape(1, 4, 2, 8, 16)
    *_, ours = attention.bench_attention("causal", shape, "float32", MACHINE, names=("xla",))
    assert ours["failed"] == "out of memory"
    assert ours["ratio_to_jax_xla"] == {"forward": 1.0}
    assert ratio(ours, {"failed": "no such kernel"}) is None
