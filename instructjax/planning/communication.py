"""Reads the communication between devices from the text of a compiled program."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import defaultdict

OPERATIONS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_CALLED = re.compile(r"(body|condition|to_apply|calls|branch_computations)=(\{[^}]*\}|[^ ,]+)")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(OPERATIONS)})(-start)?\(")  # a tuple may have /*index=5*/
_ARRAY = re.compile(r"([a-z]+)(\d*)\[([\d,]*)\]")
_LIMIT = re.compile(r"= [su]\d+\[\]\S* constant\((\d+)\)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
# On a TPU, a reduce-scatter is a fusion of an all-reduce with the slices of its results, named so.
_SCATTERED = "all-reduce-scatter"
# Groups as "{{0,2},{1,3}}", "[2,4]<=[8]" (2 groups of 4) or "mesh['a'=2,'b'=4] {'b'}".
_LISTED, _COUNTED = re.compile(r"replica_groups=\{\{([\d,]+)\}"), re.compile(r"replica_groups=\[\d+,(\d+)\]")
_NAMED = re.compile(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation between devices.

    Attributes:
      operation: one of OPERATIONS.
      dtype: of its largest array, as XLA spells it, such as "bf16".
      elements: of its largest array.
      bytes: of its results on a device.
      devices: how many communicate with each other.
      loops: the number of loops around it.
      runs: how often the program executes it, if no loop ends early.
    """

    operation: str
    dtype: str
    elements: int
    bytes: float
    devices: int
    loops: int
    runs: int

    @property
    def sent(self) -> float:
        """The bytes that a device sends each time, around a ring of the devices."""
        if self.operation == "collective-permute":
            return self.bytes
        whole = self.bytes * (self.devices if self.operation == "reduce-scatter" else 1)
        return whole * (2 if self.operation == "all-reduce" else 1) * (self.devices - 1) / self.devices


def collectives(text: str) -> list[Collective]:
    """Lists the collectives of an optimized program.

    Args:
      text: from `jax.stages.Compiled.as_text`.
    """
    lines, entry = _computations(text)
    callers: dict[str, list[tuple[str, int]]] = defaultdict(list)  # with the trips of a loop; 0 if it is none
    for caller, body in lines.items():
        for line in body:
            called = {kind: _names(names) for kind, names in _CALLED.findall(line)}
            for kind, names in called.items():
                trips = _trips(line, lines, called.get("condition", [])) if kind == "body" else 0
                for name in names:
                    callers[name].append((caller, trips))
    loops: dict[str, int] = {}
    runs: dict[str, int] = {entry: 1}

    def around(name: str) -> tuple[int, int]:
        if name not in loops:
            found = [(*around(caller), trips) for caller, trips in callers[name]]
            loops[name] = max((depth + bool(trips) for depth, _, trips in found), default=0)
            runs.setdefault(name, sum(times * (trips or 1) for _, times, trips in found))
        return loops[name], runs[name]

    found: dict[str, Collective] = {}
    for name, body in lines.items():
        for number, line in enumerate(body):
            if match := _COLLECTIVE.search(line):
                one, channel = _read(match, line, *around(name), is_scattered=_SCATTERED in name), _CHANNEL.search(line)
                # A collective that overlaps with fusions is written into each of them, with one channel. Collectives of
                # other kinds or sizes may have the same channel.
                place = f"{channel[1]} {one.operation} {one.elements}" if channel else f"{name} {number}"
                found.setdefault(place, one)
    return list(found.values())


def bytes_sent(text: str) -> float:
    """Computes the bytes that each device sends in one execution of a program; see `Collective.sent`."""
    return sum(one.runs * one.sent for one in collectives(text))


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """Returns the lines of each computation, and the name of the first that runs."""
    lines: dict[str, list[str]] = {}
    entry = ""
    for line in text.splitlines():
        if match := _COMPUTATION.match(line):
            current = lines.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif lines:
            current.append(line)
    return lines, entry


def _names(text: str) -> list[str]:
    return [name.lstrip("%") for name in text.strip("{}").split(", ")]


def _trips(line: str, lines: dict[str, list[str]], conditions: list[str]) -> int:
    """Returns how often a loop runs: what the compiler knows, or the largest number in its condition."""
    if known := _TRIPS.search(line):
        return int(known[1])
    texts = [text for name in conditions for text in lines.get(name, [])]
    texts += [text for name in conditions for text in _called_lines(name, lines)]
    return max((int(limit) for text in texts for limit in _LIMIT.findall(text)), default=1) or 1


def _called_lines(name: str, lines: dict[str, list[str]]) -> list[str]:
    called = [inner for line in lines.get(name, []) for _, names in _CALLED.findall(line) for inner in _names(names)]
    return [line for inner in called for line in lines.get(inner, [])]


def _read(match: re.Match[str], line: str, loops: int, runs: int, *, is_scattered: bool) -> Collective:
    shape, operation, is_start = match.groups()
    if is_start and shape.startswith("(("):  # the arguments come first, in a tuple of their own
        shape, is_start = shape[shape.index("), ") :], None
    arrays = [
        (kind + bits, math.prod(int(size) for size in sizes.split(",") if size), int(bits or 8) / 8)
        for kind, bits, sizes in _ARRAY.findall(shape)
    ]
    dtype, elements, _ = max(arrays, key=lambda array: array[1])
    size, devices = sum(count * width for _, count, width in arrays), _devices(line)
    if is_scattered and operation == "all-reduce":
        return Collective("reduce-scatter", dtype, elements // devices, size / devices, devices, loops, runs)
    if is_start and operation == "all-gather":  # the arguments are in the tuple, too
        size *= devices / (devices + 1)
    elif is_start and operation == "collective-permute":
        size /= 2
    return Collective(operation, dtype, elements, size, devices, loops, runs)


def _devices(line: str) -> int:
    """Returns the size of a collective's groups; 2 if they are not listed, as in a permutation."""
    if listed := _LISTED.search(line):
        return listed[1].count(",") + 1
    if counted := _COUNTED.search(line):
        return int(counted[1])
    if named := _NAMED.search(line):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", named[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", named[2]))
    return 2
