"""`dynllava samples`: the pictures that come with the package."""

import argparse
from typing import Any

from dynllava_jax.cli.output import add_json, write_json


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("samples", help="the pictures that come with the package")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from dynllava_jax.demo import pictures

    if args.json is not None:
        records = [
            {"name": s.name, "path": str(s.path), "question": s.question, "scene": s.scene} for s in pictures.SAMPLES
        ]
        write_json(args.json, records)
        return 0
    width = max(len(picture.name) for picture in pictures.SAMPLES)
    for picture in pictures.SAMPLES:
        # The demo model knows its scenes alone.
        kind = "scene" if picture.scene else "photograph"
        print(f"sample:{picture.name:<{width}}  {kind:<10}  {picture.question:<28}  {picture.path}")
    return 0
