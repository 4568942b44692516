"""The page of device.py: tables of what was measured, with what follows from it."""

import dataclasses

from benchmarks.device_recipes import UNITS
from benchmarks.tables import markdown, number
from instructjax import accelerators
from instructjax.models.flops import Work
from instructjax.planning import chips, plan

GIB = accelerators.GIB
NOTES = """\
*MFU* is model FLOP/s divided by the published peak of the chips, then by the matmul rate measured above. Recomputed and
masked operations are not counted. *Bound* is the least time at the measured matmul rate and memory bandwidth, without
communication. *Of bound* is the bound divided by the measured time. Peak memory is in GiB per device: as plan.py
predicts it without the chips, with attention as two einsums; as the compiler reports it for the program that ran; as
the device measured it."""


def page(results):
    """Returns the Markdown of all results so far."""
    by_part = {name: part["measurements"] for name, part in results["parts"].items()}
    found = [one for part in by_part.values() for one in part]
    facts = {key: value for one in by_part.get("machine", []) for key, value in one.items()}
    parts = [
        f"# {facts.get('devices', '?')} x {facts.get('device', 'unknown device')}",
        f"    {results['command']}",
        f"{', '.join(f'{name} {version}' for name, version in results['versions'].items())}; "
        f"{results.get('seconds', 0):.0f} s.{' A rehearsal: tiny sizes, on a CPU.' if results['rehearsal'] else ''}",
        _rates(facts),
        _programs(found, facts),
        _attention(found),
        _whole_runs(found),
        _outcomes(results["parts"]),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _rates(facts):
    if "matmul_flops" not in facts:
        return ""
    chip = _published(facts)

    def published(value):
        return f"{value:.4g}" if value else "-"

    lines = [
        ["matmul, bfloat16", f"{facts['matmul_flops'] / 1e12:.3g} Tflop/s", published(chip.peak / 1e12)],
        ["memory, read and write", f"{facts.get('bandwidth', 0) / 1e9:.4g} GB/s", published(chip.bandwidth / 1e9)],
    ]
    if "all_reduce_bandwidth" in facts:
        lines.append(["all-reduce, sent by a chip", f"{facts['all_reduce_bandwidth'] / 1e9:.4g} GB/s", "-"])
    return markdown(["of one chip", "measured", "published"], lines)


def _published(facts):
    """Returns the chip's published specification; that of a CPU has zeros."""
    topology = facts.get("topology")
    return chips.parse(topology).chip if topology else accelerators.CHIPS["cpu"]


def _programs(found, facts):
    """Returns the table of programs, each with its plan."""
    measured = [one for one in found if "phases" in one]
    planned = {(one["size"], one["program"]): one["peak_planned"] for one in found if "peak_planned" in one}
    lines = []
    for one in measured:
        flops = sum(work["flops"] for work in one["phases"].values())
        rate = flops / one["seconds"] / facts.get("devices", 1)
        bound = _bound(one, facts)
        peaks = planned.get((one["size"], one["program"])), one["peak_by_compiler"], one["peak_measured"]
        lines.append(
            [
                f"{one['size']} {one['program']}",
                f"{number(one['units'] / one['seconds'])} {UNITS[one['program']]}/s",
                f"{one['seconds']:.3g} ({one['steps']})",
                *(
                    f"{rate / peak:.3f}" if peak else "-"
                    for peak in (_published(facts).peak, facts.get("matmul_flops"))
                ),
                *(("-", "-") if bound is None else (f"{bound:.3g}", f"{bound / one['seconds']:.2f}")),
                *("-" if peak is None else f"{peak / GIB:.3g}" for peak in peaks),
                f"{one['compile_seconds']:.0f}",
            ]
        )
    header = ["", "rate", "s per run (runs)", "MFU", "MFU, measured", "bound, s", "of bound"]
    header += ["peak, planned", "compiled", "measured", "s to compile"]
    return f"{markdown(header, lines)}\n\n{NOTES}" if lines else ""


def _bound(one, facts):
    """Returns the least seconds of a program at the measured rates; None before they are measured."""
    if "bandwidth" not in facts:
        return None
    devices = facts["devices"]
    chip = dataclasses.replace(accelerators.CHIPS["cpu"], peak=facts["matmul_flops"], bandwidth=facts["bandwidth"])
    here = chips.Topology("measured", chip, (devices,))
    return sum(plan.roofline(Work(**work), here, one["tensor"]) for work in one["phases"].values())


def _attention(found):
    lines = [
        [
            one["attention"],
            one["kernel"],
            *(f"{one[error]:.2g}" for error in ("error", "error_of_einsums")),
            *(f"{1000 * one[seconds]:.3g}" for seconds in ("seconds", "seconds_of_einsums")),
        ]
        for one in found
        if "attention" in one
    ]
    header = ["attention, forward and backward", "kernel", "error", "of einsums", "ms", "of einsums"]
    about = "Largest error of values and gradients against float32, divided by the largest value; both in bfloat16."
    return f"{markdown(header, lines)}\n\n{about}" if lines else ""


def _whole_runs(found):
    lines = [
        [name, one[name], f"{one['seconds']:.0f} s"] for name in ("tests", "recipe") for one in found if name in one
    ]
    return markdown(["whole runs", "last line", "time"], lines) if lines else ""


def _outcomes(parts):
    lines = [[name, f"{part['seconds']:.0f}", part.get("error", "done")] for name, part in parts.items()]
    return markdown(["part", "s", "outcome"], lines)
