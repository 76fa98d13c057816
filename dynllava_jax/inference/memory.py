"""Whether a model fits, before anything is loaded."""

import os
from collections.abc import Sequence
from typing import Any

from dynllava_jax.errors import InputError

_GIB = 2**30
_INSTEAD = "use a smaller --dtype, more devices (--mesh) or --device cpu"


def check_fits(name: str, needed: int, devices: Sequence[Any], copies: int = 1, *, instead: str = _INSTEAD) -> None:
    """Compares the bytes that the parameters take with what the devices have left, all of them together.

    Args:
        name: of the model.
        needed: bytes of its parameters.
        devices: what holds them.
        copies: how often: a mesh splits the parameters over its other axes, and copies them along `data`.
        instead: what to do, said in the message.

    Raises:
        InputError: there is too little, with both figures.
    """
    free = free_bytes(devices)
    if free is not None and copies * needed > free:
        told = "its parameters" if copies == 1 else f"the {copies} copies of its parameters that data={copies} asks for"
        raise InputError(
            f"{name} needs {copies * needed / _GIB:.2f} GiB for {told}, but {len(devices)} {devices[0].platform} "
            f"device(s) have {free / _GIB:.2f} GiB free; {instead}."
        )


def free_bytes(devices: Sequence[Any]) -> int | None:
    """Memory left on these devices; None where the platform does not say."""
    if devices[0].platform == "cpu":
        try:
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") + _reclaimable()
        except ValueError:  # macOS has no name for free pages
            return None
    stats: list[dict[str, Any] | None] = [device.memory_stats() for device in devices]
    if any(not known or "bytes_limit" not in known for known in stats):
        return None
    return sum(known["bytes_limit"] - known.get("bytes_in_use", 0) for known in stats if known)


def _reclaimable() -> int:
    """Page cache, which the system gives back when asked."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            fields = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in file}
        return max(0, fields["MemAvailable"] - fields["MemFree"])
    except (OSError, KeyError, ValueError, IndexError):
        return 0
