"""`dynllava verify`: our model against numbers recorded from the official code."""

import argparse
import sys
from typing import Any

from dynllava_jax.cli.local_path import local_path
from dynllava_jax.cli.output import add_json, make_folder, write_json
from dynllava_jax.verify.tolerance import PLATFORMS


def add_parser(subparsers: Any) -> None:
    """Adds `verify`; the parsed namespace's `run` does the work."""
    parser = subparsers.add_parser(
        "verify",
        help="compare with numbers recorded from the official code",
        description="Converts the checkpoint of DIR, runs it, and compares every recorded array. Exit status 0: all "
        "hold; 1: one does not, or a case asked for is unsupported (naming no case asks for all); 2: bad input.",
    )
    parser.add_argument(
        "--cases", type=local_path, required=True, metavar="DIR", help="folder with manifest.json, checkpoint and cases"
    )
    parser.add_argument(
        "--case", action="extend", nargs="+", default=[], metavar="NAME", help="only these, by name or number"
    )
    parser.add_argument(
        "--dump", type=local_path, metavar="DIR", help="write what was computed there, one NAME.npz per case"
    )
    parser.add_argument("--platform", choices=PLATFORMS, default="cpu", help="where to compute (cpu)")
    parser.add_argument(
        "--attention", metavar="NAME", help="implementation, such as triton-interpret (the platform's best)"
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Returns the exit status; bad input is raised as InputError."""
    import jax

    from dynllava_jax.verify import report as text
    from dynllava_jax.verify.cases import read_recording
    from dynllava_jax.verify.runner import device_of, verify

    recording = read_recording(args.cases)
    names = recording.choose(args.case)
    if args.platform == "cpu" and not jax.config.jax_platforms:  # pyright: ignore[reportAttributeAccessIssue]
        jax.config.update("jax_platforms", "cpu")  # no accelerator is started, and none need be there
    device_of(args.platform)
    if args.dump is not None:
        make_folder("--dump", args.dump)
    out = sys.stderr if args.json == "-" else sys.stdout
    print(f"converting {recording.checkpoint} …", file=sys.stderr)
    print(text.header(), file=out)
    report = verify(
        recording,
        names,
        platform=args.platform,
        attention=args.attention,
        dump=args.dump,
        on_case=lambda name, case: print(text.case_line(name, case), file=out, flush=True),
    )
    print(file=out)
    for line in text.closing(report):
        print(line, file=out)
    if args.json is not None:
        write_json(args.json, [report.as_json()])
    return 0 if report.ok else 1
