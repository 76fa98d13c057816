"""What a compiled program sends between devices, read off its text; loops count as often as they run."""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

_KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute", "collective-broadcast")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8,
          "u64": 8, "f64": 8}  # fmt: skip
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_OPERATION = re.compile(rf"= (.*?) ({'|'.join(_KINDS)})(-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+)")
_CONSTANT = re.compile(r"%?([\w.\-]+) = s32\[\]\S* constant\((\d+)\)")
_LESS = re.compile(r"ROOT .* compare\([^,]+, (?:s32\[\]\S* )?%?([\w.\-]+)\), direction=LT")
_FUSION = re.compile(r" fusion\(.*calls=%?([\w.\-]+)")
_SCATTERED = "all-reduce-scatter"
"""How the TPU compiler names a fusion of an all-reduce with a slice of it: it sends what a reduce-scatter does."""
_CHANNEL = re.compile(r"channel_id=(\d+)")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_LISTED = re.compile(r"replica_groups=\{(\{[\d,{}]*\})\}")
_MESH = re.compile(r"replica_groups=mesh\[([^\]]*)\]\s*\{([^}]*)\}")
_IOTA = re.compile(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?")


@dataclasses.dataclass(frozen=True)
class Traffic:
    """What one device sends in one run of the program by collectives of a kind.

    Attributes:
        kind: such as all-gather.
        count: how many are run.
        sent: bytes that leave the device, as a ring sends them.
        across: those of groups that reach over hosts.
    """

    kind: str
    count: int
    sent: float
    across: float


def traffic(text: str, devices: int, per_host: int) -> list[Traffic]:
    """All collectives of a program, by kind.

    Args:
        text: `Compiled.as_text()`.
        devices: that run it.
        per_host: devices of a host; those of a host have consecutive numbers.
    """
    found: dict[str, list[tuple[int, float, bool]]] = defaultdict(list)
    times = _runs(text)
    fusions = {match[1] for _, line in _lines(text) if (match := _FUSION.search(line))}
    begun: set[str] = set()
    for name, line in _lines(text):
        if times.get(name) and (match := _OPERATION.search(line)):
            # The TPU compiler spreads one collective over several fusions, and writes it down in each of them.
            if name in fusions and (channel := _CHANNEL.search(line)):
                if channel[1] in begun:
                    continue
                begun.add(channel[1])
            result, kind, started = match.groups()
            groups = _groups(line, devices)
            payload = _payload(result, bool(started))
            if kind == "reduce-scatter" and not started:
                payload *= len(groups[0])  # its result is the smaller end
            if kind == "all-reduce" and name.startswith(_SCATTERED):
                kind = "reduce-scatter"
            sent = _sent(kind, payload, len(groups[0]))
            across = any(len({device // per_host for device in group}) > 1 for group in groups)
            found[kind].append((times[name], sent, across))
    return [
        Traffic(
            kind,
            sum(count for count, _, _ in rows),
            sum((count * sent for count, sent, _ in rows), 0.0),
            sum((count * sent for count, sent, across in rows if across), 0.0),
        )
        for kind, rows in sorted(found.items())
    ]


def _sent(kind: str, payload: int, size: int) -> float:
    """Bytes that a device sends when `payload` is the larger of a collective's input and output."""
    share = (size - 1) / size
    return {"all-reduce": 2 * share, "collective-permute": 1.0, "collective-broadcast": 1.0}.get(kind, share) * payload


def _payload(result: str, started: bool) -> int:
    """Bytes of a result, in which a started collective lists its operands too; the larger half is what travels."""
    sizes = [math.prod(map(int, filter(None, dims.split(",")))) * _BYTES.get(kind, 4) for kind, dims in
             _ARRAY.findall(result)]  # fmt: skip
    if started and len(sizes) % 2 == 0:
        half = len(sizes) // 2
        return max(sum(sizes[:half]), sum(sizes[half:]))
    return sum(sizes)


def _groups(line: str, devices: int) -> list[list[int]]:
    """The devices that work together, in any of the ways in which XLA writes them; all, where it writes none."""
    if match := _LISTED.search(line):
        return [list(map(int, group.split(","))) for group in re.findall(r"\{([\d,]+)\}", match[1])]
    if match := _IOTA.search(line):
        shape, source, order = (tuple(map(int, part.split(","))) if part else () for part in match.groups())
        numbers = np.arange(math.prod(source)).reshape(source)
        return (numbers.transpose(order) if order else numbers).reshape(shape).tolist()
    if match := _MESH.search(line):
        return _along(re.findall(r"'([^']+)'=(\d+)", match[1]), re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", match[2]))
    return [list(range(devices))]


def _along(mesh: list[tuple[str, str]], axes: list[tuple[str, str, str]]) -> list[list[int]]:
    """Groups along some axes of a mesh, or along a part of an axis (`'x':(2)4`: four apart behind the first two)."""
    shape: list[int] = []
    inside: list[int] = []
    for name, size in mesh:
        parts = {1: int(size)}
        for other, before, length in axes:
            if other == name:
                start, count = (int(before), int(length)) if before else (1, int(size))
                parts = {0: start, 1: count, 2: int(size) // start // count}
                inside.append(len(shape) + 1)
        if 0 not in parts:
            parts = {0: 1, 1: int(size), 2: 1}
        shape += [parts[0], parts[1], parts[2]]
    numbers = np.arange(math.prod(shape)).reshape(shape)
    outside = [axis for axis in range(len(shape)) if axis not in inside]
    count = math.prod(shape[axis] for axis in inside)
    return numbers.transpose(*outside, *inside).reshape(-1, count).tolist()


def _runs(text: str) -> dict[str, int]:
    """How often each computation runs in one run of the program."""
    calls: dict[str, list[tuple[str, int]]] = defaultdict(list)
    limits = _limits(text)
    for name, line in _lines(text):
        trips = 1
        if match := _TRIPS.search(line):
            trips = int(match[1])
        elif match := _WHILE.search(line):
            trips = limits.get(match[1], 1)
        for called in _CALLED.findall(line):
            calls[name] += [(callee, trips) for callee in re.findall(r"[\w.\-]+", called)]
    times: dict[str, int] = defaultdict(int)

    def count(name: str, factor: int) -> None:
        times[name] += factor
        for callee, trips in calls[name]:
            count(callee, factor * trips)

    count(_entry(text), 1)
    return times


def _limits(text: str) -> dict[str, int]:
    """Of each condition that compares a counter with a constant, the constant: the TPU compiler writes no counts."""
    constants: dict[tuple[str, str], int] = {}
    limits: dict[str, int] = {}
    for name, line in _lines(text):
        if match := _CONSTANT.search(line):
            constants[name, match[1]] = int(match[2])
        elif (match := _LESS.search(line)) and (name, match[1]) in constants:
            limits[name] = constants[name, match[1]]
    return limits


def _entry(text: str) -> str:
    return next(match[2] for line in text.splitlines() if (match := _COMPUTATION.match(line)) and match[1])


def _lines(text: str) -> Iterator[tuple[str, str]]:
    """(computation, line) of every operation."""
    name = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            name = match[2]
        elif name:
            yield name, line
