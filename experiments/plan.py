"""What a recipe would need on hardware that is not there: every program compiled for it, and a table.

    python experiments/plan.py --config=configs/instructgpt.py:175b --topology=v5p:8x8x8 \
        --config.parallel.fsdp=16 --config.parallel.tensor=32

Nothing is run, and no array is made. Needs the extra plan-tpu or plan-cuda; see docs/scaling.md.
"""

import dataclasses
import json
import os

# Before JAX starts: a plan is not for the devices of this machine, and the compilers' warnings would hide the tables.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import command_line  # noqa: E402
from absl import flags  # noqa: E402
from etils import epath  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from instructjax.planning import chips, compiling, compute, plan, programs, suggestions, table  # noqa: E402
from instructjax.training import parallel  # noqa: E402

DEFAULT = ("pretrain", "sft", "reward", *(f"ppo_ptx {part}" for part in ("rollout", "scoring", "update", "iteration")))

_TOPOLOGY = flags.DEFINE_string(
    "topology", None, f"CHIP:SHAPE, such as {', '.join(f'{kind}:{c.example}' for kind, c in chips.CHIPS.items())}."
)
_PROGRAMS = flags.DEFINE_multi_enum(
    "programs", list(DEFAULT), list(programs.PROGRAMS), "The programs to compile; repeat the flag for several."
)
_TRIALS = flags.DEFINE_integer(
    "trials", 4, "Compilations spent at most on a setting that fits, for each program that does not.", lower_bound=0
)
_DEMONSTRATIONS = flags.DEFINE_integer(
    "demonstrations", 12_725, "Examples of SFT, for the compute of its stages; Table 6."
)
_RANKINGS = flags.DEFINE_integer("rankings", 33_207, "Ranked prompts, for the compute of the reward model; Table 6.")
_JSON = flags.DEFINE_string("json", None, "A file that receives what is printed as JSON, one object a line.")


def main(run):
    """Compiles, prints, and looks for what would fit."""
    config = run.config
    topology = chips.parse(_TOPOLOGY.value or "")
    compiling.mesh(topology, parallel.mesh_shape(config.parallel, topology.size))  # what is wrong is told at once
    variant = config_flags.get_config_filename(flags.FLAGS["config"]).rpartition(":")[2]
    stages = compute.stages(config, _DEMONSTRATIONS.value, _RANKINGS.value, variant)
    title = f"{command_line.name()} on {topology.size} x {topology.chip.name} ({topology.name})"
    print(f"{title}, compiled and not run\n")
    print(table.of_stages(stages, topology), flush=True)
    rows, advice = [], []
    for name in _PROGRAMS.value:
        row = plan.of_program(name, config, topology)
        rows.append(row)
        if not row.fits:
            suggestion = suggestions.suggest(row, config, topology, _TRIALS.value)
            advice.append(table.of_misfit(row, suggestion, _TRIALS.value))
    if _JSON.value:
        found = [{"program": {**dataclasses.asdict(row), "fits": row.fits}} for row in rows]
        found += [{"stage": dataclasses.asdict(stage)} for stage in stages]
        lines = [{"recipe": command_line.name(), "topology": topology.name}, *found]
        epath.Path(_JSON.value).write_text("".join(json.dumps(line) + "\n" for line in lines))
    print(f"\n{table.of_programs(rows)}\n\n{table.NOTES}")
    if advice:
        print("\n" + "\n".join(advice))


if __name__ == "__main__":
    command_line.read(main)
