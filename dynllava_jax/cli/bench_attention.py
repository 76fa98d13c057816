"""`dynllava bench attention`: the attention of each implementation, beside what JAX ships."""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from dynllava_jax.cli.bench_records import add_round, check_round, measured_machine, tell
from dynllava_jax.cli.output import add_json

_SHAPES = {
    "cpu": ("1,4,2,256,64",),
    "gpu": ("4,32,32,2048,128", "1,32,32,2048,128", "4,64,8,2048,128", "4,32,32,704,128"),
}


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "attention",
        help="kernels alone",
        description="Times causal, policy and decode attention, forward and both ways: output and gradients in one "
        "call, those of queries, keys, values and policy. GB/s count what has to be read or written once at least. A "
        "kernel in interpret mode is never timed: that would measure the interpreter.",
    )
    parser.add_argument(
        "--shape", action="append", metavar="B,H,KV,S,D", help="batch, heads, kv heads, length, head dim"
    )
    parser.add_argument(
        "--operation", action="append", choices=("causal", "policy", "decode"), help="one of them (all)"
    )
    parser.add_argument(
        "--implementation", action="append", metavar="NAME", help="of the door (what this platform has)"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of all arrays (float32 on a CPU, else bfloat16)"
    )
    add_round(parser, "calls")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    check_round(args.round)
    tell(args.json, _measure(args), line)
    return 0


def _measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    import jax

    from dynllava_jax.benchmark.attention import OPERATIONS, AttentionShape, bench_attention, check_names

    platform = jax.devices()[0].platform
    shapes = [AttentionShape.parse(text) for text in args.shape or _SHAPES.get(platform, _SHAPES["gpu"])]
    dtype = args.dtype or ("float32" if platform == "cpu" else "bfloat16")
    names = tuple(args.implementation or ())
    check_names(names)
    machine = measured_machine(dtype, args.round)
    print("dynllava: interpret-mode kernels are never timed", file=sys.stderr)
    for shape in shapes:
        for operation in args.operation or OPERATIONS:
            for record in bench_attention(operation, shape, dtype, machine, names=names, least=args.round):
                yield record | machine.record()


def line(record: dict[str, Any]) -> str:
    """One record as it is printed."""
    sizes = ",".join(str(record[name]) for name in ("batch", "heads", "kv_heads", "length", "head_dim"))
    start = f"{record['operation']:<7}{sizes:<17} {record['implementation']:<10} "
    parts = [_way(record, way) for way in ("forward", "both") if f"{way}_seconds" in record]
    if "failed" in record:
        parts.append(f"{'both ways ' if parts else ''}not here: {record['failed']}")
    return start + " | ".join(parts)


def _way(record: dict[str, Any], way: str) -> str:
    ratios = [
        f"{value[way]:.2f} x as fast as {name.removeprefix('ratio_to_')}"
        for name, value in record.items()
        if name.startswith("ratio_to_") and value and way in value
        if name != f"ratio_to_{record['implementation']}"
    ]
    return (
        f"{way} {1e3 * record[f'{way}_seconds']:9.3f} ms {record[f'{way}_tflops']:8.3f} TFLOP/s "
        f"{record[f'{way}_share_of_matmul']:6.1%} of matmul {record[f'{way}_gb_per_second']:7.1f} GB/s "
        f"{record[f'{way}_share_of_bandwidth']:6.1%} of copy{''.join(f', {text}' for text in ratios)}"
    )
