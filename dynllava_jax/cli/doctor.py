"""`dynllava doctor`: versions, devices, and which implementation each operation would take."""

import argparse
import platform
from importlib import metadata
from typing import Any

from dynllava_jax.cli.output import add_json, write_json

_PACKAGES = ("dynllava_jax", "jax", "jaxlib", "flax", "orbax-checkpoint", "numpy", "pillow", "sentencepiece", "torch")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("doctor", help="versions, devices, what runs where")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    import jax

    from dynllava_jax.inference.memory import free_bytes
    from dynllava_jax.kernels import api

    devices = jax.devices()
    free = free_bytes(devices)
    report = {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": [str(device) for device in devices],
        "free_gib": None if free is None else round(free / 2**30, 2),
        "kernels": api.chosen(devices[0].platform),
    }
    if args.json is not None:
        write_json(args.json, [report])
        return 0
    print(f"python  {report['python']}")
    for name, version in report["packages"].items():
        print(f"{name:<18}{version or 'not installed'}")
    print(f"devices  {', '.join(report['devices'])}")
    print(f"free     {'unknown' if free is None else f'{free / 2**30:.1f} GiB'}")
    for operation, implementations in report["kernels"].items():
        print(f"{operation:<18}{', '.join(implementations)}")
    return 0


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
