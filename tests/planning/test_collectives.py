"""Bytes between devices, read off programs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from dynllava_jax.planning.collectives import traffic
from dynllava_jax.sharding.mesh import make_mesh


def test_a_loop_counts_as_often_as_it_runs() -> None:
    mesh = make_mesh("fsdp=8")
    split = NamedSharding(mesh, PartitionSpec(None, "fsdp", None))
    whole = NamedSharding(mesh, PartitionSpec())

    def run(layers: jax.Array, x: jax.Array) -> jax.Array:
        def body(x: jax.Array, layer: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(x @ jax.lax.with_sharding_constraint(layer, whole)), None

        return jax.lax.scan(body, x, layers)[0]

    layers = jax.device_put(jnp.zeros((5, 64, 64)), split)
    compiled = jax.jit(run, out_shardings=whole).lower(layers, jnp.zeros((4, 64))).compile()
    (found,) = traffic(compiled.as_text() or "", devices=8, per_host=4)
    assert found.kind == "all-gather"
    assert found.count in (1, 5)  # inside the loop, or all layers before it
    assert found.sent == 5 * 64 * 64 * 4 * 7 / 8
    assert found.across == found.sent  # eight devices, four of a host


def test_a_loop_without_a_count_runs_to_the_constant_of_its_condition() -> None:
    text = (
        "%less (p: (s32[], f32[8])) -> pred[] {\n"
        "  %end = s32[]{:T(128)} constant(7)\n"
        "  %p = (s32[]{:T(128)}, f32[8]) parameter(0)\n"
        "  %i = s32[]{:T(128)} get-tuple-element(%p), index=0\n"
        "  ROOT %lt = pred[]{:T(512)} compare(%i, %end), direction=LT\n"
        "}\n\n"
        "%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {\n"
        "  %g = f32[8]{0} all-reduce(%x), replica_groups={{0,1}}\n"
        "}\n\n"
        "ENTRY %main (x: f32[8]) -> f32[8] {\n"
        "  %w = (s32[], f32[8]) while(%x), condition=%less, body=%body\n"
        "}\n"
    )
    (found,) = traffic(text, devices=2, per_host=2)
    assert (found.count, found.sent) == (7, 7 * 32)


def test_a_collective_that_is_spread_over_fusions_counts_once() -> None:
    """As the TPU compiler writes one: in the fusion that starts it, and in each that runs while it is under way."""
    begun = "  %g = f32[8]{0} all-gather(%x), channel_id=4, replica_groups={{0,1}}, dimensions={0}\n}\n\n"
    other = "  %g = f32[8]{0} all-gather(%x), channel_id=5, replica_groups={{0,1}}, dimensions={0}\n}\n\n"
    text = (
        "%start (x: f32[4]) -> f32[8] {\n" + begun + "%during (x: f32[4]) -> f32[8] {\n" + begun
        + "%another (x: f32[4]) -> f32[8] {\n" + other
        + "ENTRY %main (x: f32[4]) -> f32[8] {\n"
        "  %a = f32[8] fusion(%x), kind=kCustom, calls=%start\n"
        "  %b = f32[8] fusion(%a), kind=kOutput, calls=%during\n"
        "  %c = f32[8] fusion(%b), kind=kCustom, calls=%another\n"
        "}\n"
    )  # fmt: skip
    (found,) = traffic(text, devices=2, per_host=2)
    assert (found.count, found.sent) == (2, 2 * 16)


def test_a_tpu_fuses_a_reduce_scatter_out_of_an_all_reduce() -> None:
    text = (
        "%all-reduce-scatter.1.clone (x: f32[64]) -> f32[8] {\n"
        "  %g = f32[64]{0} all-reduce(%x), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add\n"
        "  ROOT %s = f32[8]{0} dynamic-slice(%g, %i), dynamic_slice_sizes={8}\n}\n\n"
        "ENTRY %main (x: f32[64]) -> f32[8] {\n"
        "  %a = f32[8]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1.clone\n}\n"
    )
    (found,) = traffic(text, devices=8, per_host=8)
    assert (found.kind, found.sent) == ("reduce-scatter", 256 * 7 / 8)


HEAD = "ENTRY %main (x: f32[8]) -> f32[64] {\n"


@pytest.mark.parametrize(
    ("groups", "size", "across"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4, False),
        ("{{0,4},{1,5},{2,6},{3,7}}", 2, True),
        ("[2,4]<=[8]", 4, False),
        ("[4,2]<=[2,4]T(1,0)", 2, True),
        ("mesh['a'=2,'b'=4] {'b'}", 4, False),
        ("mesh['a'=2,'b'=4] {'a'}", 2, True),
        ("mesh['a'=8] {'a':(1)2}", 2, True),
        ("mesh['a'=8] {'a':(4)2}", 2, False),
        ("mesh['a'=2,'b'=4] {'a','b'}", 8, True),
        ("{}", 8, True),
    ],
)
def test_every_way_of_writing_groups_is_read(groups: str, size: int, across: bool) -> None:
    line = f"  %g = f32[64]{{0}} all-gather(%x), channel_id=1, replica_groups={groups}, dimensions={{0}}\n"
    (found,) = traffic(HEAD + line + "}\n", devices=8, per_host=4)
    assert found.sent == pytest.approx(256 * (size - 1) / size)
    assert (found.across > 0) == across


@pytest.mark.parametrize(
    ("operation", "bytes_sent"),
    [
        ("f32[64]{0} all-reduce(%x)", 2 * 256 * 7 / 8),
        ("(bf16[8]{0}, bf16[64]{0}) all-gather-start(%x)", 128 * 7 / 8),
        ("((bf16[64]{0}, f32[64]{0}), (bf16[8]{0}, f32[8]{0})) reduce-scatter-start(%x, %y)", 384 * 7 / 8),
        ("f32[64]{0} collective-permute(%x)", 256.0),
        ("f32[8]{0} reduce-scatter(%x)", 256 * 7 / 8),
        ("(f32[8]{0}, bf16[8]{0}) reduce-scatter(%x, %y)", 384 * 7 / 8),
    ],
)
def test_each_kind_sends_its_share(operation: str, bytes_sent: float) -> None:
    text = f"{HEAD}  %g = {operation}, replica_groups={{{{{','.join(map(str, np.arange(8)))}}}}}\n}}\n"
    (found,) = traffic(text, devices=8, per_host=8)
    assert found.sent == pytest.approx(bytes_sent)
    assert found.across == 0
