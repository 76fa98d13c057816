"""The device mesh. The only file that names `AxisType`."""

import difflib
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh

from dynllava_jax.errors import InputError

AXES = ("data", "fsdp", "tensor")
"""data: copies of the model on different samples; fsdp: the same with the weights split; tensor: heads and features."""

_log = logging.getLogger(__name__)


def make_mesh(spec: str | Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh with the axes `data`, `fsdp` and `tensor`, those that are not named having size 1.

    Args:
        spec: `"data=2,tensor=4"` or `{"data": 2, "tensor": 4}`; one size may be -1, "the rest of the devices".
        devices: of any platform, also described ones (`analysis.aot`); default all of them. A smaller mesh takes
            the first ones, which is logged; with several processes, some of them idle, it is refused.

    Raises:
        InputError: an unknown axis, a size that is no number, or a product that does not fit the devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = _fill(_parse(spec) if isinstance(spec, str) else dict(spec), len(devices))
    shape = tuple(sizes.get(axis, 1) for axis in AXES)
    count = math.prod(shape)
    if count < len(devices):
        if jax.process_count() > 1:
            raise InputError(f"Mesh {_spell(sizes)} takes {count} of {len(devices)} devices; use -1 for one axis.")
        _log.info("mesh %s takes %d of %d devices", _spell(sizes), count, len(devices))
    # Auto: selection sorts, gathers and sums along axes that may be sharded; in Explicit mode, the default since
    # jax 0.9, each of those raises a ShardingTypeError.
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices[:count])


def own_mesh(mesh: Mesh) -> Mesh:
    """A caller's own mesh as `make_mesh` makes one: `jax.make_mesh` has made it in Explicit mode.

    Raises:
        InputError: its axes have other names.
    """
    if set(mesh.axis_names) != set(AXES):
        raise InputError(
            f"The mesh has the axes {', '.join(map(str, mesh.axis_names))}; name them {', '.join(AXES)}, those that "
            "split nothing with size 1, or give a text such as 'data=2,tensor=4'."
        )
    return Mesh(mesh.devices, mesh.axis_names, axis_types=(AxisType.Auto,) * len(AXES))


def check_context(mesh: Mesh | None) -> None:
    """Raises InputError where `jax.set_mesh` would have programs traced for other devices than those of `mesh`.

    Args:
        mesh: the model's own, None for one device.
    """
    context = jax.sharding.get_mesh()
    if not context.empty and context != mesh and (mesh is not None or context.size > 1):
        raise InputError(
            f"jax.set_mesh is in force with the mesh {_spell(context.shape)}, which is not the model's own; leave it "
            "before the model is loaded or asked, and split the model with mesh=…."
        )


def _parse(spec: str) -> dict[str, int]:
    sizes: dict[str, int] = {}
    for item in filter(None, (part.strip() for part in spec.split(","))):
        axis, _, size = (word.strip() for word in item.partition("="))
        if axis in sizes:
            raise InputError(f"Mesh '{spec}' names the axis {axis} twice.")
        try:
            sizes[axis] = int(size)
        except ValueError:
            raise InputError(f"Mesh '{spec}': '{item}' is not AXIS=SIZE, such as tensor=4.") from None
    return sizes


def _fill(sizes: dict[str, int], count: int) -> dict[str, int]:
    """Checks the sizes against `count` devices and puts a number in the place of -1."""
    for axis, size in sizes.items():
        if axis not in AXES:
            near = difflib.get_close_matches(axis, AXES, n=1, cutoff=0.3)
            hint = f"did you mean {near[0]}?" if near else f"use {', '.join(AXES)}."
            raise InputError(f"Mesh axis '{axis}' is unknown; {hint}")
        if size < 1 and size != -1:
            raise InputError(f"Mesh axis {axis} must be 1 or more, or -1 for the rest, not {size}.")
    rest = [axis for axis, size in sizes.items() if size == -1]
    if len(rest) > 1:
        raise InputError(f"Only one mesh axis may be -1, not {' and '.join(rest)}.")
    known = math.prod(size for size in sizes.values() if size != -1)
    if rest and count % known:
        raise InputError(f"Mesh {_spell(sizes)}: {known} does not divide the {count} devices, so nothing fits -1.")
    if known > count:
        raise InputError(f"Mesh {_spell(sizes)} needs {known} devices, but there are {count}.")
    return sizes | dict.fromkeys(rest, count // known)


def _spell(sizes: Mapping[str, int]) -> str:
    return ",".join(f"{axis}={size}" for axis, size in sizes.items())
