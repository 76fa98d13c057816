"""`dynllava inspect`: what a checkpoint holds."""

import argparse
import dataclasses
import json
from collections.abc import Iterator
from typing import Any

from dynllava_jax.checkpoint.inspect import Inspection, inspect
from dynllava_jax.cli.output import add_json, write_json
from dynllava_jax.progress import Progress


def add_parser(subparsers: Any) -> None:
    """Adds `inspect`; the parsed namespace's `run` does the work."""
    parser = subparsers.add_parser("inspect", help="a checkpoint's config, parameters, sizes, norms and content hash")
    parser.add_argument("checkpoint", metavar="CKPT", help="a model checkpoint, a work folder, or a step of one")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Returns the exit status; bad input is raised as InputError."""
    with Progress("reading", "B", scaled=True) as progress:
        found = inspect(args.checkpoint, on_start=progress.start, on_part=progress.advance)
    if args.json is None:
        print("\n".join(_lines(found)))
    else:
        write_json(args.json, [dataclasses.asdict(found)])
    return 0


def _lines(found: Inspection) -> Iterator[str]:
    yield f"{found.path}: {found.parameters:,} parameters, {found.nbytes:,} bytes"
    for part, values in found.config.items():
        yield f"  {part}: {json.dumps(values, ensure_ascii=False)}"
    for name, value in found.facts.items():
        yield f"  {name}: {json.dumps(value, ensure_ascii=False)}"
    width = max(len(row.path) for row in found.rows)
    yield f"{'parameter':{width}} {'layers':>6} {'shape':>16} {'dtype':>9} {'bytes':>15} {'norm':>12}"
    for row in found.rows:
        layers = "" if row.layers is None else row.layers
        shape = "x".join(map(str, row.shape)) or "scalar"
        bad = f"  {row.not_finite} values are NaN or infinite" if row.not_finite else ""
        yield f"{row.path:{width}} {layers:>6} {shape:>16} {row.dtype:>9} {row.nbytes:15,} {row.norm:12.6g}{bad}"
    for dtype, nbytes in sorted(found.dtypes.items()):
        yield f"{dtype}: {nbytes:,} bytes"
    yield f"{found.carried} tensors carried for export"
    yield f"content hash {found.content_hash}"
