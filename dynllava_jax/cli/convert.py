"""`dynllava convert`: checkpoints in (and, later, out)."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from dynllava_jax.cli.output import add_json, write_json
from dynllava_jax.convert.from_torch import DTYPES, Report, convert


def add_parser(subparsers: Any) -> None:
    """Adds `convert from-torch`; the parsed namespace's `run` does the work."""
    parser = subparsers.add_parser("convert", help="bring PyTorch weights in")
    kinds = parser.add_subparsers(dest="kind", required=True)
    command = kinds.add_parser("from-torch", help="a PyTorch LLaVA or Dynamic-LLaVA folder becomes a model checkpoint")
    command.add_argument("src", type=Path, metavar="SRC", help="folder with config.json and .safetensors or .bin files")
    command.add_argument("dst", type=Path, metavar="DST", help="where the checkpoint goes; must not exist yet")
    command.add_argument("--vision-tower", type=Path, metavar="DIR", help="CLIP folder, where SRC lacks its tower")
    command.add_argument(
        "--prefer-tower", choices=("given", "inside"), help="which to take when --vision-tower and SRC's own differ"
    )
    command.add_argument("--dtype", choices=DTYPES, help="default: as stored")
    command.add_argument("--conv-template", default="vicuna_v1", metavar="T", help="conversation template (vicuna_v1)")
    command.add_argument(
        "--no-predictors", action="store_true", help="keep a base LLaVA dense instead of adding untrained predictors"
    )
    add_json(command)
    command.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Returns the exit status; bad input is raised as InputError."""
    with _Progress() as progress:
        report = convert(
            args.src,
            args.dst,
            vision_tower=args.vision_tower,
            prefer_tower=args.prefer_tower,
            dtype=args.dtype,
            template=args.conv_template,
            predictors=not args.no_predictors,
            on_start=progress.start,
            on_item=progress.advance,
        )
    if args.json is None:
        print(_text(report))
    else:
        write_json(args.json, [dataclasses.asdict(report)])
    return 0


class _Progress:
    """A bar with rate and remaining time on a terminal; nothing elsewhere."""

    def __init__(self) -> None:
        self._bar: Any = None

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def start(self, nbytes: int) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=nbytes, unit="B", unit_scale=True, desc="converting", disable=not sys.stderr.isatty())

    def advance(self, nbytes: int) -> None:
        if self._bar is not None:
            self._bar.update(nbytes)


def _text(report: Report) -> str:
    dtypes = ", ".join(f"{count} {name}" for name, count in sorted(report.dtypes.items()))
    lines = [
        f"{report.dst}: {report.nbytes / 1e9:.2f} GB in {report.seconds:.1f} s from a checkpoint of the "
        f"{report.layout} layout",
        f"  {report.tensors} tensors used, {report.carried} carried for export, {report.dropped} left out ({dtypes})",
        *(f"  note: {note}" for note in report.notes),
    ]
    return "\n".join(lines)
