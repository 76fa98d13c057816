"""`dynllava doctor`: versions, devices, and which implementation each operation would take."""

import argparse
import platform
from importlib import metadata
from typing import Any

from dynllava_jax.cli.output import add_json, write_json
from dynllava_jax.errors import CheckError

_PACKAGES = ("dynllava_jax", "jax", "jaxlib", "flax", "orbax-checkpoint", "numpy", "pillow", "sentencepiece", "torch")


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser("doctor", help="versions, devices, what runs where")
    add_json(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Returns the exit status.

    Raises:
        CheckError: JAX has no device to compute on; the versions, which may say why, are written before.
    """
    import jax

    from dynllava_jax.inference.memory import free_bytes
    from dynllava_jax.kernels import api

    devices, problem = [], None
    try:
        devices = jax.devices()
    except RuntimeError as error:  # a platform was named that has no chip, or whose plugin does not start
        problem = error
    free = free_bytes(devices) if devices else None
    report = {
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "devices": [str(device) for device in devices],
        "free_gib": None if free is None else round(free / 2**30, 2),
        "kernels": api.chosen(devices[0].platform) if devices else {},
    }
    if args.json is not None:
        write_json(args.json, [report])
    else:
        _write(report)
    if problem is not None:
        raise CheckError(f"JAX has no device: {problem}")
    return 0


def _write(report: dict[str, Any]) -> None:
    print(f"python  {report['python']}")
    for name, version in report["packages"].items():
        print(f"{name:<18}{version or 'not installed'}")
    print(f"devices  {', '.join(report['devices']) or 'none'}")
    free = report["free_gib"]
    print(f"free     {'unknown' if free is None else f'{free:.1f} GiB'}")
    for operation, implementations in report["kernels"].items():
        print(f"{operation:<18}{', '.join(implementations)}")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
