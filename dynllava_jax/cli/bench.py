"""`dynllava bench`: how fast everything is on this machine."""

from typing import Any

from dynllava_jax.cli import bench_attention, bench_generate, bench_train


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "bench", help="how fast attention, generation and training are here", description="Measures on JAX's devices."
    )
    kinds = parser.add_subparsers(dest="kind", metavar="WHAT", required=True, parser_class=type(parser))
    for module in (bench_attention, bench_generate, bench_train):
        module.add_parser(kinds)
