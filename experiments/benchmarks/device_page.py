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
predicts it without the chips, for GPUs with attention as two einsums; as the compiler reports it for the program that
ran, if it was compiled and not read from the cache; as the device measured it, for the programs of one part together.
Products of integers (int8xint8) are counted at the rate of bfloat16, so their *bound* is not one."""


def facts(results):
    """Returns what the part `machine` has found, as one dictionary."""
    found = results["parts"].get("machine", {"measurements": []})["measurements"]
    return {key: value for one in found for key, value in one.items()}


def page(results):
    """Returns the Markdown of all results so far."""
    found = [one for part in results["parts"].values() for one in part["measurements"]]
    of_machine = facts(results)
    parts = [
        f"# {of_machine.get('devices', '?')} x {of_machine.get('device', 'unknown device')}",
        f"    {results['command']} --parts='{','.join(results['parts'])}'",
        f"{', '.join(f'{name} {version}' for name, version in results['versions'].items())}; "
        f"{sum(part['seconds'] for part in results['parts'].values()):.0f} s in these parts."
        f"{' A rehearsal: tiny sizes, on a CPU.' if results['rehearsal'] else ''}",
        _rates(of_machine),
        _programs(found, of_machine),
        _attention(found),
        _whole_runs(found),
        _outcomes(results["parts"]),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def _rates(of_machine):
    if "matmul_flops" not in of_machine:
        return ""
    chip = _published(of_machine)

    def published(value):
        return f"{value:.4g}" if value else "-"

    lines = [
        ["matmul, bfloat16", f"{of_machine['matmul_flops'] / 1e12:.3g} Tflop/s", published(chip.peak / 1e12)],
        ["memory, read and write", f"{of_machine.get('bandwidth', 0) / 1e9:.4g} GB/s", published(chip.bandwidth / 1e9)],
    ]
    if "all_reduce_bandwidth" in of_machine:
        lines.append(["all-reduce, sent by a chip", f"{of_machine['all_reduce_bandwidth'] / 1e9:.4g} GB/s", "-"])
    return markdown(["of one chip", "measured", "published"], lines)


def _published(of_machine):
    """Returns the chip's published specification; that of a CPU has zeros."""
    topology = of_machine.get("topology")
    return chips.parse(topology).chip if topology else accelerators.CHIPS["cpu"]


def _programs(found, of_machine):
    """Returns the table of programs, each with its plan."""
    measured = [one for one in found if "phases" in one]
    planned = {(one["size"], one["program"]): one["peak_planned"] for one in found if "peak_planned" in one}
    lines = []
    for one in measured:
        flops = sum(work["flops"] for work in one["phases"].values())
        rate = flops / one["seconds"] / of_machine.get("devices", 1)
        bound = _bound(one, of_machine)
        changes = [f"{name.replace('__', '.')}={value}" for name, value in one.get("changes", {}).items()]
        plan_of = None if changes else planned.get((one["size"], one["program"]))
        peaks = plan_of, one["peak_by_compiler"], one["peak_measured"]
        lines.append(
            [
                " ".join([one["size"], one["program"], *changes]),
                f"{number(one['units'] / one['seconds'])} {UNITS[one['program']]}/s",
                f"{one['seconds']:.3g} ({one['steps']})",
                *(
                    f"{rate / peak:.3f}" if peak else "-"
                    for peak in (_published(of_machine).peak, of_machine.get("matmul_flops"))
                ),
                *(("-", "-") if bound is None else (f"{bound:.3g}", f"{bound / one['seconds']:.2f}")),
                *(f"{peak / GIB:.3g}" if peak else "-" for peak in peaks),
                f"{one['compile_seconds']:.0f}",
            ]
        )
    header = ["", "rate", "s per run (runs)", "MFU", "MFU, measured", "bound, s", "of bound"]
    header += ["peak, planned", "compiled", "measured", "s to compile"]
    return f"{markdown(header, lines)}\n\n{NOTES}" if lines else ""


def _bound(one, of_machine):
    """Returns the least seconds of a program at the measured rates; None before they are measured."""
    if "bandwidth" not in of_machine:
        return None
    devices = of_machine["devices"]
    rates = {"peak": of_machine["matmul_flops"], "bandwidth": of_machine["bandwidth"]}
    chip = dataclasses.replace(accelerators.CHIPS["cpu"], **rates)
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
