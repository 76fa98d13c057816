"""Machines by the names that their users give them, and what one of their devices can do."""

import dataclasses
import difflib
import itertools
import math
import re

from dynllava_jax.errors import InputError

_GIB = 2**30
SHARE = 0.92
"""Of a device's memory that a program may take: the rest goes to the runtime and to fragments."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """One device of a kind.

    Attributes:
        name: what `analysis.aot.topology` calls the kind.
        memory: bytes.
        flops: dense bfloat16 FLOP/s.
        bandwidth: bytes a second between the device and its memory.
        link: bytes a second that a device sends to its neighbours within a host (GPU) or slice (TPU), one way.
        network: the same across hosts; a TPU slice has its own network, so that hosts make no difference.
        per_host: devices of one host.
    """

    name: str
    memory: int
    flops: float
    bandwidth: float
    link: float
    network: float
    per_host: int


# Memory, FLOP/s and bandwidth: cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e} and NVIDIA's data sheets of A100, H100, H200
# (SXM), but of an H100's and an H200's memory what CUDA leaves to programs. Links: the same pages, half of the
# bidirectional figure. Networks of GPU hosts are those of the usual machines: one 200 Gbit/s adapter a GPU beside
# A100s, 400 Gbit/s beside H100s and H200s.
CHIPS = {
    "v4": Chip("v4", 32 * _GIB, 275e12, 1.228e12, 150e9, 150e9, 4),
    "v5e": Chip("v5e", 16 * _GIB, 197e12, 0.819e12, 100e9, 100e9, 4),
    "v5p": Chip("v5p", 95 * _GIB, 459e12, 2.765e12, 300e9, 300e9, 4),
    "v6e": Chip("v6e", 32 * _GIB, 918e12, 1.640e12, 224e9, 224e9, 4),
    "a100-40": Chip("a100-40", 40 * _GIB, 312e12, 1.555e12, 300e9, 25e9, 8),
    "a100": Chip("a100", 80 * _GIB, 312e12, 2.039e12, 300e9, 25e9, 8),
    "h100": Chip("h100", 84_929_347_584, 989e12, 3.352e12, 450e9, 50e9, 8),
    "h200": Chip("h200", 150_109_880_320, 989e12, 4.8e12, 450e9, 50e9, 8),
}

_ALIASES = {"v5litepod": "v5e", "v5lite": "v5e", "v6elitepod": "v6e", "a100-80": "a100", "a100-40gb": "a100-40",
            "a100-80gb": "a100", "h100-80": "h100", "h100-80gb": "h100"}  # fmt: skip

# Slices that the cloud sells: chips -> shape. v5e and v6e: two dimensions. v4 and v5p: three.
_FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
_CUBES = {
    4: "2x2x1",
    8: "2x2x2",
    16: "2x2x4",
    32: "2x4x4",
    64: "4x4x4",
    128: "4x4x8",
    256: "4x8x8",
    512: "8x8x8",
    1024: "8x8x16",
    2048: "8x16x16",
}
_PODS = {"v4": (16, 16, 16), "v5p": (16, 16, 24)}
"""The largest slice of each kind; smaller ones of whole cubes of 4x4x4 chips are sold besides those above."""
_CORES = {"v4", "v5p"}
"""Kinds whose slices the cloud names by TensorCores, of which a chip has two: v5p-32 has 16 chips."""


@dataclasses.dataclass(frozen=True)
class Machine:
    """What a topology name stands for.

    Attributes:
        name: as it was asked for.
        chip: its devices.
        shape: sizes: of the slice in chips (TPU), or hosts x GPUs per host.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def is_gpu(self) -> bool:
        return self.chip.network != self.chip.link

    @property
    def devices(self) -> int:
        return math.prod(self.shape)

    @property
    def per_host(self) -> int:
        if self.is_gpu:
            return self.shape[1]
        # Eight v5e or v6e chips are one host; larger slices are made of hosts of four.
        alone = 8 if len(self.shape) == 2 else self.chip.per_host
        return self.devices if self.devices <= alone else self.chip.per_host

    @property
    def hosts(self) -> int:
        return self.devices // self.per_host

    @property
    def topology(self) -> str:
        """The name for `analysis.aot.topology`."""
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}"

    @property
    def limit(self) -> int:
        """Bytes of a device that a program may take."""
        return int(SHARE * self.chip.memory)


def machine(name: str) -> Machine:
    """The machine of that name: `v5e:8x8`, `v5litepod-64`, `v5p-32`, `a100:1x8`, `a100-40:2x8`, `h200:4x8`, …

    Raises:
        InputError: an unknown kind (the nearest is given), or a size or a shape of a slice that is not sold (the
            nearest are given).
    """
    text = name.strip().lower()
    kind, _, shape = text.partition(":")
    count = ""
    if not shape and text not in {**CHIPS, **_ALIASES} and (match := re.fullmatch(r"(.+)-(\d+)", text)):
        kind, count = match.groups()  # but a100-80 is a kind: 80 are its GB
    kind = _ALIASES.get(kind, kind)
    if kind not in CHIPS:
        near = difflib.get_close_matches(kind, [*CHIPS, *_ALIASES], n=3, cutoff=0.3)
        hint = f"the nearest are {', '.join(near)}" if near else f"there are {', '.join(CHIPS)}"
        raise InputError(f"Topology {name!r} is unknown: {hint}, with a shape such as v5e:8x8, v5p-32 or a100:1x8.")
    chip = CHIPS[kind]
    if count:
        shape = _sold(name, kind, int(count))
    sizes = tuple(map(int, shape.split("x"))) if re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape) else ()
    wanted = 3 if kind in _CORES else 2
    if len(sizes) != wanted:
        example = f"{kind}:{'2x2x1' if wanted == 3 else '1x8' if chip.link != chip.network else '8x8'}"
        raise InputError(f"Topology {name!r} needs a shape of {wanted} sizes, such as {example}.")
    if chip.link == chip.network and sizes not in (known := _slices(kind)):
        chips = math.prod(sizes)
        near = sorted(known, key=lambda shape: (abs(math.log(math.prod(shape) / chips)), math.dist(shape, sizes)))[:3]
        spelled = ", ".join(f"{kind}:{'x'.join(map(str, shape))}" for shape in near)
        raise InputError(f"Topology {name!r} is no slice that is sold; the nearest are {spelled}.")
    return Machine(name, chip, sizes)


def _slices(kind: str) -> list[tuple[int, ...]]:
    """Shapes in chips that a kind of TPU is sold in."""
    listed = (_CUBES if kind in _CORES else _FLAT).values()
    shapes = [tuple(map(int, shape.split("x"))) for shape in listed]
    if kind in _PODS:
        pod = _PODS[kind]
        cubes = itertools.combinations_with_replacement(range(4, max(pod) + 1, 4), len(pod))
        shapes += [cube for cube in cubes if all(map(int.__le__, cube, pod))]
    return list(dict.fromkeys(shapes))


def _sold(name: str, kind: str, count: int) -> str:
    if CHIPS[kind].link != CHIPS[kind].network:
        hosts, left = divmod(count, 8)
        if left and count > 8:
            raise InputError(f"Topology {name!r}: {count} GPUs are no whole hosts of 8; write {kind}:HOSTSxGPUS.")
        return f"{hosts}x8" if hosts else f"1x{count}"
    # Of several shapes with as many chips, the one that the cloud lists, or else the nearest to a cube.
    known = {math.prod(shape): "x".join(map(str, shape)) for shape in sorted(_slices(kind), key=sum, reverse=True)}
    known |= _CUBES if kind in _CORES else _FLAT
    chips = count // 2 if kind in _CORES else count
    if chips not in known or (kind in _CORES and count % 2):
        factor = 2 if kind in _CORES else 1
        near = sorted(known, key=lambda size: (abs(size - chips), size))[:3]
        raise InputError(
            f"Topology {name!r} is not sold; the nearest are {', '.join(f'{kind}-{size * factor}' for size in near)}, "
            f"or give the shape in chips ({kind}:{known[near[0]]})."
        )
    return known[chips]
