"""Lists the communication between devices in the text of a compiled program."""

import dataclasses
import math
import re

OPERATIONS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")

_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{")
_CALLED = re.compile(r"(body|condition|to_apply|calls|branch_computations)=(\{[^}]*\}|[^ ,]+)")
_COLLECTIVE = re.compile(rf"= (.*?) ({'|'.join(OPERATIONS)})(?:-start)?\(")  # a tuple may have /*index=5*/
_ARRAY = re.compile(r"([a-z]+\d*)\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True)
class Collective:
    """One operation between devices.

    Attributes:
      operation: one of OPERATIONS.
      dtype: of its largest array, as XLA spells it, such as "bf16".
      elements: of its largest array.
      loops: the number of loops around it.
    """

    operation: str
    dtype: str
    elements: int
    loops: int


def collectives(text: str) -> list[Collective]:
    """Lists the collectives of an optimized program with the number of loops around each.

    Args:
      text: from `jax.stages.Compiled.as_text`.
    """
    lines: dict[str, list[str]] = {}
    for line in text.splitlines():
        if found := _COMPUTATION.match(line):
            current = lines.setdefault(found[1], [])
        elif lines:
            current.append(line)
    depths = _loops_around(lines)
    return [_read(line, depths[name]) for name, body in lines.items() for line in body if _COLLECTIVE.search(line)]


def _loops_around(lines: dict[str, list[str]]) -> dict[str, int]:
    """Returns the largest number of loops around each computation."""
    callers: dict[str, set[tuple[str, bool]]] = {name: set() for name in lines}
    for caller, body in lines.items():
        for line in body:
            for kind, names in _CALLED.findall(line):
                for name in (name.lstrip("%") for name in names.strip("{}").split(", ")):
                    if name in callers:
                        callers[name].add((caller, kind == "body"))
    depths: dict[str, int] = {}

    def depth(name: str) -> int:
        if name not in depths:
            depths[name] = max((depth(caller) + is_loop for caller, is_loop in callers[name]), default=0)
        return depths[name]

    return {name: depth(name) for name in lines}


def _read(line: str, loops: int) -> Collective:
    found = _COLLECTIVE.search(line)
    assert found is not None
    arrays = [
        (dtype, math.prod(int(size) for size in sizes.split(",") if size)) for dtype, sizes in _ARRAY.findall(found[1])
    ]
    dtype, elements = max(arrays, key=lambda array: array[1])
    return Collective(found[2], dtype, elements, loops)
