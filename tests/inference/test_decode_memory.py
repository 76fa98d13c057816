"""Decoding needs little memory besides the weights and the cache, on the real compilers for machines that are not here.

Every layer of the full model is there: a `lax.scan` compiles as fast at 32 layers as at 4.
"""

import collections
import dataclasses
import importlib.util
import re

import jax
import pytest

from dynllava_jax.analysis.aot import memory, topology
from dynllava_jax.analysis.decode_program import compile_prefill, compile_segment
from dynllava_jax.config.model import ModelConfig
from dynllava_jax.config.presets import dynamic_llava_7b
from dynllava_jax.inference.buckets import Shape, output_rate
from dynllava_jax.sharding.mesh import make_mesh

pytestmark = [pytest.mark.aot, pytest.mark.slow]
needs_tpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="the aot extra is not installed")
needs_cuda = pytest.mark.skipif(
    importlib.util.find_spec("jax_cuda13_plugin") is None, reason="the aot extra is not installed"
)


@pytest.mark.parametrize(
    ("name", "mesh", "rows", "grown", "attention"),
    [
        # So many rows that a layer of the cache is larger than the weights that XLA copies for its matrix products.
        pytest.param("a100:1x1", None, 64, 0, "triton", marks=needs_cuda),
        pytest.param("a100:1x1", None, 64, 0, "xla", marks=needs_cuda),
        pytest.param("a100:1x4", "tensor=4", 128, 0, "triton", marks=needs_cuda),
        pytest.param("h100:1x1", None, 64, 1, "triton", marks=needs_cuda),
        pytest.param("v5e:1x1", None, 1, 0, "tpu", marks=needs_tpu),  # 16 GB hold no more
        pytest.param("v5e:2x2", "tensor=4", 8, 1, "tpu", marks=needs_tpu),
        pytest.param("v5e:2x2", "tensor=4", 8, 0, "xla", marks=needs_tpu),
    ],
)
def test_a_segment_copies_neither_weights_nor_cache(name, mesh, rows, grown, attention):
    devices = topology(name)
    where = devices[0] if mesh is None else make_mesh(mesh, devices)
    shape = Shape(rows, images=1, length=768, deep_length=256, answer=2048)
    config = dynamic_llava_7b()
    needs = memory(compile_segment(config, shape, where, grown=grown, attention=attention))
    assert needs.temporaries < deep_keys(config, shape) / (1 if mesh is None else len(devices))
    assert needs.temporaries < 0.05 * needs.arguments
    assert needs.output < 2**20


@pytest.mark.parametrize(
    ("program", "dtype", "share"),
    [
        (compile_prefill, "bfloat16", 0.11),
        (compile_segment, "bfloat16", 0.02),  # jax 0.10 has the cache go through float32 when a token is stored
        (compile_segment, "float16", 0.01),
        (compile_segment, "float32", 0.01),
    ],
)
def test_a_cpu_holds_no_second_copy_of_weights(program, dtype, share):
    """It multiplies in float32: by one layer at a time, for a single token by a piece of one, not all of them."""
    shape = Shape(1, images=1, length=768, deep_length=256, answer=128)
    needs = memory(program(dynamic_llava_7b(), shape, jax.devices("cpu")[0], dtype=dtype))
    assert needs.temporaries < share * needs.arguments


@needs_cuda
@pytest.mark.skipif(jax.__version_info__ < (0, 11), reason="the XLA of jax 0.10 cuts weights out of their stack first")
@pytest.mark.parametrize("name", ["a100:1x1", "h100:1x1"])
def test_products_read_weights_in_their_stack(name):
    config = dynamic_llava_7b()
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, num_layers=4))
    shape = Shape(1, images=1, length=768, deep_length=256, answer=2048)
    text = compile_segment(config, shape, topology(name)[0]).as_text() or ""
    weights = re.findall(r"bf16\[1,(?:4096|11008),(?:4096|11008)\]\S* (\S+?)\(", text)
    assert "dynamic-slice" in weights  # inside of the products
    assert not {"fusion", "copy", "async-start", "fusion-start"} & set(weights)


def deep_keys(config: ModelConfig, shape: Shape) -> int:
    """Bytes of one deep layer's keys in bfloat16, before its cache grew: a copy of any layer takes as many."""
    decoder, capacity = config.decoder, shape.deep_capacities(output_rate(config))[0]
    return 2 * shape.rows * decoder.num_kv_heads * capacity * decoder.head_dim


@needs_cuda
@pytest.mark.parametrize("name", ["a100:1x1", "h100:1x1"])
def test_fused_products_are_four_kernels_a_layer_and_copy_no_weights(name):
    config = dynamic_llava_7b()
    config = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, num_layers=4))
    shape = Shape(1, images=1, length=768, deep_length=256, answer=2048)
    text = compile_segment(config, shape, topology(name)[0], products="triton").as_text() or ""
    kernels = re.findall(r'custom-call\(.*op_name="[^"]*/(decode_\w+)/pallas_call"', text)
    two_stacks = {"decode_rotated": 2, "decode_attention": 2, "decode_attention_join": 2, "decode_added": 4}
    assert collections.Counter(kernels) == two_stacks | {"decode_gated": 2}
    assert not re.findall(r"bf16\[1,(?:4096|11008),(?:4096|11008)\]\S* \S+\(", text)
