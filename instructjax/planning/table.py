"""Formats a plan as plain text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from instructjax.accelerators import GIB
from instructjax.planning.chips import Topology
from instructjax.planning.compute import StageCompute
from instructjax.planning.plan import ProgramPlan

NOTES = """\
Memory is in GiB per device.
  weights   weights of all networks, including averages and frozen ones
  opt.      Adam's moments
  batch     the rows of a step
  cache     keys and values
  rest      the peak minus weights, moments and batch: activations, gradients, logits, cache
  peak, of  peak memory, and the memory available to a program
  FLOPs     model FLOPs: the matmuls that the mathematics needs, over all devices
  executed  FLOPs of the matmuls that the program executes, including recomputation in the backward pass
  roofline  the least time at the chips' published peak and bandwidth, without communication
  links     the least time of communication at the chips' published rate, which may overlap with the roofline
Every response counts with its full length."""


def format_programs(plans: Iterable[ProgramPlan]) -> str:
    """Formats one line per program: whether it fits, what fills the memory, its FLOPs and its least time."""
    header = (
        *("program", "data x fsdp x tensor", "fits", "weights", "opt.", "batch", "cache", "rest", "peak", "of"),
        *("FLOPs", "executed", "roofline", "links"),
    )
    return _aligned([header, *(_cells(plan) for plan in plans)])


def _cells(plan: ProgramPlan) -> tuple[str, ...]:
    mesh, least = " x ".join(map(str, plan.mesh)), format_seconds(sum(plan.seconds.values()))
    flops = f"{plan.flops:.2e}", f"{plan.executed:.2e}"
    arguments, found = plan.residents, plan.compiled
    if arguments is None or found is None:
        return plan.name, mesh, "NO", *("-",) * 7, *flops, least, "-"
    memory = (
        *(arguments.weights, arguments.optimizer, arguments.batch),
        *(plan.cache, plan.rest, found.peak, found.available),
    )
    return (
        plan.name,
        mesh,
        "yes" if found.fits else "NO",
        *(_gib(value) for value in memory),
        *flops,
        least,
        format_seconds(plan.links),
    )


def format_stages(stages: Sequence[StageCompute], topology: Topology) -> str:
    """Formats one line per stage: its petaflop/s-days, next to the paper's."""
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


def format_misfit(misfit: ProgramPlan, suggestion: ProgramPlan | None, trials: int) -> str:
    """Formats one line: why a program does not fit, and the flags with which it would."""
    reason = misfit.obstacle or f"needs {_peak_of_available(misfit)} GiB"
    if suggestion is None:
        return f"{misfit.name}: {reason}; {trials} compilations found no setting that fits"
    place = [f"--topology={suggestion.topology}"] if suggestion.topology != misfit.topology else []
    changes = " ".join([*place, *(f"--config.{key}={value}" for key, value in suggestion.changes.items())])
    return f"{misfit.name}: {reason}; fits with {changes} ({_peak_of_available(suggestion)} GiB)"


def _peak_of_available(plan: ProgramPlan) -> str:
    assert plan.compiled is not None  # only a plan with an obstacle is not compiled
    return f"{_gib(plan.compiled.peak)} of {_gib(plan.compiled.available)}"


def format_seconds(value: float) -> str:
    """Formats a time in the unit that suits it; "-" for NaN."""
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
    """Aligns columns: the first to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

    def line(first: str, *cells: str) -> str:
        numbers = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        return "  ".join([first.ljust(widths[0]), *numbers])

    return "\n".join(line(*cells) for cells in lines)
