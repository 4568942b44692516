"""A plan as plain text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from instructjax.planning.chips import GIB, Topology
from instructjax.planning.compute import Stage
from instructjax.planning.plan import Row

NOTES = """\
GiB on each device. weights: of all networks the program holds, averages and frozen ones included. opt.: Adam's
moments. cache: keys and values. rest: the peak less weights, optimiser and batch, that is activations, gradients,
logits and the cache. FLOPs: of the products of matrices, over all devices; executed: with what is computed again
in the backward pass. roofline: the least time that the published peak and bandwidth of the chips allow; what
devices send each other is not in it. Responses count with their full length."""


def of_programs(rows: Iterable[Row]) -> str:
    """One line for each program: whether it fits, what fills a device, and the time it takes at least."""
    header = (
        *("program", "data x fsdp x tensor", "fits", "weights", "opt.", "batch", "cache", "rest", "peak", "of"),
        *("FLOPs", "executed", "roofline"),
    )
    return _aligned([header, *(_cells(row) for row in rows)])


def _cells(row: Row) -> tuple[str, ...]:
    mesh, least = " x ".join(map(str, row.mesh)), seconds(sum(row.seconds.values()))
    flops = f"{row.flops:.2e}", f"{row.executed:.2e}"
    if row.compiled is None:
        return row.name, mesh, "NO", *("-",) * 7, *flops, least
    given, found = row.residents, row.compiled
    memory = (given.weights, given.optimizer, given.batch, row.cache, row.rest, found.peak, found.available)
    return row.name, mesh, "yes" if found.fits else "NO", *(_gib(value) for value in memory), *flops, least


def of_stages(stages: Sequence[Stage], topology: Topology) -> str:
    """One line for each stage: its compute in petaflop/s-days, beside the paper's."""
    header = "stage", "steps", "petaflop/s-days", "paper", f"days on {topology.name} at peak"
    lines = [
        (
            stage.name,
            f"{stage.steps:,}",
            _days(stage.days),
            "-" if stage.paper is None else f"{stage.paper:,g}",
            _days(stage.days * 1e15 / (topology.size * topology.chip.peak)) if topology.chip.peak else "-",
        )
        for stage in stages
    ]
    return _aligned([header, *lines])


def of_misfit(row: Row, suggestion: Row | None, trials: int) -> str:
    """One line: why a program does not fit, and what would have to change for it."""
    if row.obstacle:
        reason = row.obstacle
    else:
        reason = f"needs {_gib(row.compiled.peak)} of {_gib(row.compiled.available)} GiB"
    if suggestion is None:
        return f"{row.name}: {reason}; no setting that fits was found with {trials} compilations"
    place = [f"--topology={suggestion.topology}"] if suggestion.topology != row.topology else []
    changes = " ".join([*place, *(f"--config.{key}={value}" for key, value in suggestion.changes.items())])
    found = suggestion.compiled
    return f"{row.name}: {reason}; fits with {changes} ({_gib(found.peak)} of {_gib(found.available)} GiB)"


def seconds(value: float) -> str:
    """A time with a unit that suits it."""
    if math.isnan(value):
        return "-"
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0)):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{1000 * value:.1f} ms"


def _days(value: float) -> str:
    return f"{value:,.1f}" if value >= 1 else f"{value:.2g}"


def _gib(value: float) -> str:
    if math.isinf(value):
        return "-"
    return f"{value / GIB:.2f}" if value == 0 or value >= GIB / 10 else f"{value / GIB:.2g}"


def _aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, all but the first to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(first: str, *cells: str) -> str:
        numbers = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        return "  ".join([first.ljust(widths[0]), *numbers])

    return "\n".join(line(*cells) for cells in lines)
