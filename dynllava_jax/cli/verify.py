"""`dynllava verify`: numbers of the official code beside ours."""

import argparse
import sys
from pathlib import Path
from typing import Any

from dynllava_jax.cli.output import add_json, write_json
from dynllava_jax.verify.tolerance import PLATFORMS


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "verify",
        help="compare with numbers recorded from the official code",
        description="Converts the checkpoint of a recording, runs it and compares every recorded array.",
    )
    parser.add_argument("--cases", type=Path, required=True, metavar="DIR", help="manifest.json, checkpoint and cases")
    parser.add_argument("--case", action="append", default=[], metavar="NAME", help="05_prefill_kv or 05 (all); repeat")
    parser.add_argument("--dump", type=Path, metavar="DIR", help="write what was computed as DIR/CASE.npz")
    parser.add_argument("--platform", choices=PLATFORMS, default="cpu", help="where to compute (cpu)")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Returns 0 only if every case that was asked for is supported and holds, else 1."""
    from dynllava_jax.verify import report
    from dynllava_jax.verify.runner import Verification

    verification = Verification(args.cases, args.case, platform=args.platform)
    quiet = args.json == "-"
    if not quiet:
        print(report.HEADER)
    reports = {}
    for number, (name, found) in enumerate(verification.run(args.dump), 1):
        reports[name] = found
        if not quiet:
            print(report.line(name, found), flush=True)
        elif sys.stderr.isatty():
            print(f"\r{number} of {len(verification.names)}: {name:<40}", end="", file=sys.stderr)
    if quiet and sys.stderr.isatty():
        print(file=sys.stderr)
    if args.json is not None:
        write_json(args.json, [report.as_json(reports, verification.unsupported)])
    if not quiet:
        print(report.summary(reports, verification.unsupported))
    return int(bool(verification.unsupported) or not all(found.ok for found in reports.values()))
