"""Compiles a recipe for hardware that need not be present, and prints its memory, FLOPs and least time.

    python experiments/plan.py --config=configs/instructgpt.py:175b --topology=v5p:8x8x8 \
        --config.parallel.fsdp=16 --config.parallel.tensor=32

No program runs and no array is allocated. Needs the extra plan-tpu or plan-cuda; see docs/scaling.md.
"""

import dataclasses
import json
import os
import sys

# Set before JAX starts. A plan does not use this machine's devices, and compiler warnings would hide the tables.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import command_line  # noqa: E402
from absl import flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from instructjax import accelerators, files  # noqa: E402
from instructjax.planning import chips, compute, plan, ppo_programs, programs, suggestions, table  # noqa: E402
from instructjax.stages.run import Run  # noqa: E402
from instructjax.training import parallel  # noqa: E402

DEFAULT = ("pretrain", "sft", "reward", *(f"ppo_ptx {part}" for part in ppo_programs.PARTS))

_EXAMPLES = ", ".join(f"{kind}:{chip.example}" for kind, chip in accelerators.CHIPS.items())
_TOPOLOGY = flags.DEFINE_string("topology", None, f"The chips to compile for, as CHIP:SHAPE, such as {_EXAMPLES}.")
_PROGRAMS = flags.DEFINE_multi_enum(
    "programs", list(DEFAULT), list(programs.PROGRAMS), "The programs to compile; repeat the flag for several."
)
_TRIALS = flags.DEFINE_integer(
    "trials", 4, "How many other settings to compile, at most, for each program that does not fit.", lower_bound=0
)
_DEMONSTRATIONS = flags.DEFINE_integer(
    "demonstrations", 12_725, "The number of demonstrations, for the compute of SFT and ppo_init; Table 6."
)
_RANKINGS = flags.DEFINE_integer(
    "rankings", 33_207, "The number of ranked prompts, for the compute of the reward model; Table 6."
)
_JSON = flags.DEFINE_string("json", None, "A file to write the same numbers to, as JSON Lines.")


def main(run: Run) -> None:
    """Compiles each program, prints the tables, and searches for settings with which misfits fit."""
    config, output = run.config, files.parse(_JSON.value, "--json") if _JSON.value else None
    topology = chips.parse(_TOPOLOGY.value or "")
    parallel.make_mesh(parallel.mesh_shape(config.parallel, topology.size), chips.devices(topology))  # fails early
    variant = config_flags.get_config_filename(flags.FLAGS["config"]).rpartition(":")[2]
    stages = compute.stage_compute(config, _DEMONSTRATIONS.value, _RANKINGS.value, variant)
    title = f"{command_line.name()} on {topology.size} x {topology.chip.name} ({topology.name})"
    print(f"{title}, compiled, not run\n")
    print(table.format_stages(stages, topology), flush=True)
    plans, advice = [], []
    for name in _PROGRAMS.value:
        print(f"planning {name}", file=sys.stderr)  # may take minutes
        found = plan.plan_program(name, config, topology)
        plans.append(found)
        if not found.fits:
            print(f"trying other settings for {name}", file=sys.stderr)
            suggestion = suggestions.suggest(found, config, topology, _TRIALS.value)
            advice.append(table.format_misfit(found, suggestion, _TRIALS.value))
    if output:
        lines = [
            {"recipe": command_line.name(), "topology": topology.name},
            *({"program": {**dataclasses.asdict(program), "fits": program.fits}} for program in plans),
            *({"stage": dataclasses.asdict(stage)} for stage in stages),
        ]
        files.write_text(output, "".join(json.dumps(line) + "\n" for line in lines))
    print(f"\n{table.format_programs(plans)}\n\n{table.NOTES}")
    if advice:
        print("\n" + "\n".join(advice))


if __name__ == "__main__":
    command_line.read(main)
