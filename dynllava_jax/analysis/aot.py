"""Ahead-of-time compilation for TPUs and GPUs that this machine does not have.

The real compilers run (libtpu; XLA for CUDA with the assembler of the nvcc wheel), so that a program that compiles
here compiles there, and its memory is known before a machine is rented. Nothing is executed.
"""

import contextlib
import dataclasses
import importlib.resources
import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
from jax.experimental import topologies
from jax.experimental.layout import Format, Layout
from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding

from dynllava_jax.errors import InputError

_TPUS = ("v4", "v5e", "v5p", "v6e")
_GPUS = {"a100": "a100_80gb", "a100-40": "a100_40gb", "h100": "h100_80gb", "h200": "h200"}
_MOST_DEVICES = 1 << 16
"""Each is an object: millions of them fill the memory."""
_QUIET = {
    "TPU_SKIP_MDS_QUERY": "1",  # else libtpu asks the network what machine it is on
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a second process, such as a test worker, fails on a lock file
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",  # these two only silence warnings; the topology overrides them
    "TPU_WORKER_HOSTNAMES": "localhost",
}


@dataclasses.dataclass(frozen=True)
class Memory:
    """What one device needs to run a compiled program, in bytes. Donated arguments are not counted twice."""

    arguments: int
    temporaries: int
    output: int

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries + self.output


def topology(name: str) -> list[Any]:
    """The devices of a machine that need not exist.

    Args:
        name: `v4`, `v5e`, `v5p` or `v6e` with the shape of the slice in chips (`v5e:2x2`, `v5p:2x2x1`), or `a100`,
            `h100` (80 GB), `a100-40`, `h200` with hosts x GPUs per host (`a100:1x8`). A chip is one device.

    Raises:
        InputError: an unknown name or shape, or the compiler is not installed.
    """
    kind, _, shape = name.partition(":")
    if not re.fullmatch(r"\d{1,6}(x\d{1,6})*", shape) or kind not in (*_TPUS, *_GPUS):
        known = ", ".join((*_TPUS, *_GPUS))
        raise InputError(f"Topology '{name}' is not known; use {known} with a shape, such as v5e:2x2 or a100:1x8.")
    if math.prod(map(int, shape.split("x"))) > _MOST_DEVICES:
        raise InputError(f"Topology '{name}' has more than {_MOST_DEVICES} devices; give a smaller one.")
    package = "libtpu" if kind in _TPUS else "jax_cuda13_plugin"
    if importlib.util.find_spec(package) is None:
        raise InputError(f"Compiling for {kind} needs {package}; run: pip install 'dynllava_jax[aot]'")
    try:
        return list(_tpu(kind, shape) if kind in _TPUS else _gpu(kind, shape))
    except RuntimeError as error:
        raise InputError(f"Topology '{name}' has no such shape: {str(error).splitlines()[0]}") from error


def place(tree: Any, sharding: Any) -> Any:
    """`tree` (arrays, or their shapes from `jax.eval_shape`) as shapes that lie on described devices.

    Args:
        tree: what will be an argument of `compile_ahead`.
        sharding: a device, one sharding for every leaf, or a tree of shardings or formats, such as `param_shardings`
            and `inference.layouts.placement` make.
    """
    if not isinstance(sharding, jax.sharding.Sharding) and hasattr(sharding, "device_kind"):
        sharding = SingleDeviceSharding(sharding)
    one = isinstance(sharding, jax.sharding.Sharding)
    shardings = jax.tree.map(lambda _: sharding, tree) if one else sharding
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def compile_ahead(
    function: Callable[..., Any],
    *args: Any,
    own_layout: Sequence[int] = (),
    compiler_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> jax.stages.Compiled:
    """Compiles `function` for the devices that its arguments lie on.

    Args:
        function: a function of arrays; what is static is closed over.
        args: trees of placed shapes, see `place`.
        own_layout: positions of arguments that are held in whatever memory layout the compiler likes best, which it
            may also choose for a result that takes their place (`donate_argnums`).
        compiler_options: for XLA.
        options: for `jax.jit`, such as `donate_argnums` and `out_shardings`.
    """

    def wanted(position: int, leaf: jax.ShapeDtypeStruct) -> Any:
        return Format(Layout.AUTO, leaf.sharding) if position in own_layout else leaf.format

    shardings = tuple(jax.tree.map(lambda leaf, i=i: wanted(i, leaf), arg) for i, arg in enumerate(args))
    if own_layout:
        options.setdefault("out_shardings", Format(Layout.AUTO))
    jitted = jax.jit(function, in_shardings=shardings, **options)
    # A described GPU calls itself "gpu", the name of any maker's; the lowering must know whose.
    device = next(iter(jax.tree.leaves(args)[0].sharding.device_set))
    platform = "cuda" if device.platform == "gpu" else device.platform
    with described(device):
        lowered = jitted.trace(*args).lower(lowering_platforms=(platform,))
    with _never_cached():
        return lowered.compile(compiler_options=None if compiler_options is None else dict(compiler_options))


def described(device: Any) -> contextlib.AbstractContextManager[Any]:
    """Inside, functions are traced and kernels lowered for this device, not for the machine that one sits at."""
    kind = AbstractDevice(device.device_kind, getattr(device, "num_cores", None), device.platform)
    return jax.sharding.use_abstract_mesh(AbstractMesh((), (), abstract_device=kind))


def memory(compiled: jax.stages.Compiled) -> Memory:
    """The memory of one device, as the compiler laid it out."""
    stats: Any = compiled.memory_analysis()
    output = stats.output_size_in_bytes - stats.alias_size_in_bytes
    return Memory(stats.argument_size_in_bytes, stats.temp_size_in_bytes, output)


def _tpu(kind: str, shape: str) -> Sequence[Any]:
    sizes = [int(size) for size in shape.split("x")]
    # A slice smaller than one host's 2x2 chips exists only when the host is said to be that small.
    small = {"chips_per_host_bounds": (*sizes, 1, 1)[:3]} if math.prod(sizes) < 4 else {}
    # Without it the two cores of a chip are devices of their own, as on a real v4 they are not.
    joined = {"chip_config_name": "megacore"} if kind == "v4" else {}
    with _environment(_QUIET):
        name = f"{kind}:{shape}"
        return topologies.get_topology_desc(platform="tpu", topology_name=name, **small, **joined).devices


def _gpu(kind: str, shape: str) -> Sequence[Any]:
    target = importlib.resources.files("dynllava_jax.analysis") / "targets" / f"{_GPUS[kind]}.txtpb"
    return topologies.get_topology_desc(kind, "cuda", target_config=target.read_text(), topology=f"1x{shape}").devices


@contextlib.contextmanager
def _never_cached() -> Iterator[None]:
    """A described machine can fill the persistent compile cache, but reading from it needs the real one."""
    option = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, option)
    jax.config.update(option, math.inf)
    try:
        yield
    finally:
        jax.config.update(option, before)


@contextlib.contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Sets what is not set, for the duration: a real TPU machine keeps its own values."""
    added = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            del os.environ[name]
