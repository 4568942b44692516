"""Compares what two checkouts of this repository compute, bit for bit.

    git worktree add /tmp/before HEAD~1
    python tests/soak/compare_checkouts.py /tmp/before . --output=/tmp/compared

Runs the recipes below with the code of each checkout and compares every array of every checkpoint (by its digest),
every line of every metrics.jsonl except its times, and results.json. A change that does not affect arithmetic prints
"equal" on each line. Runs that are already in the output folder are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

SHORT = (
    "pretrain.steps=150 sft.epochs=3 comparisons.prompts=800 reward.epochs=1 ppo_init.epochs=2 ppo.iterations=8 "
    "sandbox.documents=6000 evaluate.prompts=100 sandbox.validation_prompts=60 ppo_log.save_every=4 log.save_every=50"
).split()
RUNS = {
    "smoke": ["--config=configs/sandbox.py:smoke"],
    **{
        f"sandbox-seed{seed}": [
            "--config=configs/sandbox.py",
            f"--config.seed={seed}",
            *(f"--config.{x}" for x in SHORT),
        ]
        for seed in (0, 1)
    },
}
CLOCKS = (
    "wall_seconds",
    "peak_rss_gib",
    "first_step_seconds",
    "tokens_per_second",
    "mfu",
    "data_wait_seconds",
    "memory_gib",
)


def run(checkout: pathlib.Path, arguments: list[str], workdir: pathlib.Path) -> None:
    """Runs one recipe with the code of one checkout, unless its results are there."""
    if (workdir / "results.json").exists():
        return
    command = [sys.executable, "experiments/reproduce.py", *arguments, f"--workdir={workdir}"]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    log = workdir.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as output:
        status = subprocess.run(command, cwd=checkout, env=environment, stdout=output, stderr=output).returncode
    if status:
        sys.exit(f"{checkout}: exit code {status}; see {log}")


def values(workdir: pathlib.Path, renamed: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """Yields (place, value) for all that two runs must have in common."""
    for path in sorted(workdir.glob("*/checkpoints/*/meta/metadata")):
        for name, digest in json.loads(path.read_text())["content"]["arrays"].items():
            yield f"{path.relative_to(workdir).parents[1]} {name}", digest
    for path in sorted(workdir.glob("*/metrics.jsonl")):
        for line in map(json.loads, path.read_text().splitlines()):
            for name, value in line.items():
                if name not in CLOCKS:
                    yield f"{path.relative_to(workdir)} step {line['step']} {renamed.get(name, name)}", value
    results = json.loads((workdir / "results.json").read_text())
    # Fingerprints cover the recipe, whose keys may be renamed.
    del results["sft_selection"]["reward_model"]
    results.pop("checkpoints", None)
    yield from ((f"results.json {key}", value) for key, value in results.items() if key not in CLOCKS)


def main() -> None:
    """Runs, compares, and exits with 1 if anything differs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=pathlib.Path)
    parser.add_argument("after", type=pathlib.Path)
    parser.add_argument("--output", type=pathlib.Path, required=True)
    parser.add_argument("--renamed", action="append", default=[], help="OLD=NEW: a metric that has another name now.")
    given = parser.parse_args()
    renamed = dict(pair.split("=") for pair in given.renamed)
    differ = False
    for name, arguments in RUNS.items():
        found = []
        for side, checkout in (("before", given.before), ("after", given.after)):
            workdir = given.output.resolve() / side / name
            run(checkout.resolve(), arguments, workdir)
            found.append(dict(values(workdir, renamed)))
        before, after = found
        different = [place for place in before | after if before.get(place) != after.get(place)]
        differ |= bool(different)
        print(f"{name}: {len(before)} values, {f'{len(different)} differ' if different else 'equal'}", flush=True)
        for place in different[:20]:
            print(f"  {place}: {before.get(place)!r} before, {after.get(place)!r} after")
    sys.exit(differ)


if __name__ == "__main__":
    main()
