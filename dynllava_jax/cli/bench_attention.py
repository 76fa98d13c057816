"""`dynllava bench attention`: the attention of each implementation, beside what JAX ships."""

import argparse
import sys
from collections.abc import Iterator
from typing import Any

from dynllava_jax.cli.output import add_json, write_json

_SHAPES = {
    "cpu": ("1,4,2,256,64",),
    "gpu": ("4,32,32,2048,128", "1,32,32,2048,128", "4,64,8,2048,128", "4,32,32,704,128"),
}


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "attention",
        help="kernels alone",
        description="Times causal, policy and decode attention, forward and both ways (forward and backward in one "
        "call, dq, dk and dv). A kernel in interpret mode is never timed: that would measure the interpreter.",
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
    parser.add_argument("--round", type=float, default=0.2, metavar="SECONDS", help="of one round of calls (0.2)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    records = []
    for record in _measure(args):
        records.append(record)
        if args.json != "-":
            print(_line(record), flush=True)
    if args.json is not None:
        write_json(args.json, records)
    return 0


def _measure(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    import jax

    from dynllava_jax.benchmark.attention import OPERATIONS, AttentionShape, bench_attention
    from dynllava_jax.benchmark.timing import machine

    platform = jax.devices()[0].platform
    shapes = [AttentionShape.parse(text) for text in args.shape or _SHAPES.get(platform, _SHAPES["gpu"])]
    dtype = args.dtype or ("float32" if platform == "cpu" else "bfloat16")
    found = machine(dtype, least=args.round)
    print(
        f"dynllava: {found.kind}: matrix product {found.flops / 1e12:.1f} TFLOP/s in {dtype}, copy "
        f"{found.bandwidth / 1e9:.0f} GB/s; interpret-mode kernels are never timed",
        file=sys.stderr,
    )
    names = tuple(args.implementation or ())
    for shape in shapes:
        for operation in args.operation or OPERATIONS:
            yield from bench_attention(operation, shape, dtype, found, names=names, least=args.round)


def _line(record: dict[str, Any]) -> str:
    sizes = ",".join(str(record[name]) for name in ("batch", "heads", "kv_heads", "length", "head_dim"))
    start = f"{record['operation']:<7}{sizes:<18}{record['implementation']:<10} "
    if "failed" in record:
        return f"{start}not here: {record['failed']}"
    parts = [
        f"{way} {1e3 * record[f'{way}_seconds']:9.3f} ms {record[f'{way}_tflops']:8.3f} TFLOP/s "
        f"{record[f'{way}_share_of_matmul']:6.1%} of matmul"
        for way in ("forward", "both")
        if f"{way}_seconds" in record
    ]
    parts[0] += f" {record['forward_gb_per_second']:7.1f} GB/s"
    ratios = [
        f"{'/'.join(f'{ratio:.2f}' for ratio in value.values())} x as fast as {name.removeprefix('ratio_to_')}"
        for name, value in record.items()
        if name.startswith("ratio_to_") and value and name != f"ratio_to_{record['implementation']}"
    ]
    return " | ".join([start + parts[0], *parts[1:], *ratios])
