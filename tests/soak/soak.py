"""Kills the smoke run again and again, and compares what it ends with, bit for bit, with a run that was left alone.

python tests/soak/soak.py --kills=100 --folder=runs/soak

A run that ends before it was killed so many times is compared, and another is begun. The kills
are SIGKILLs at random moments: in compilation, in training, in a save, between stages.
"""

import argparse
import json
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from instructjax.stages.workspace import STAGES  # noqa: E402
from instructjax.training import checkpoint, metrics  # noqa: E402

RECIPE = "configs/sandbox.py:smoke"
CLOCKS = ("wall_seconds", "peak_rss_gib")


def start(workdir, folder):
    """The smoke run, or the rest of it, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "experiments/reproduce.py", f"--config={RECIPE}", f"--workdir={workdir}"],
        cwd=ROOT,
        # Restarted programs are read and not compiled: more of the time is spent in what is to be killed.
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")},
        stdout=(log := (folder / "log").open("a")),
        stderr=log,
    )


def end_of(workdir):
    """Everything that a run ends with, without its clocks: digests of all arrays, curves, choices, results."""
    found = {}
    for stage in STAGES:
        directory = workdir / stage
        steps = checkpoint.saved_steps(directory / "checkpoints")
        for step in steps:
            content = json.loads((directory / "checkpoints" / str(step) / "meta" / "metadata").read_text())["content"]
            found[f"{stage} {step}"] = content["arrays"]
        found[f"{stage} curves"] = [
            {name: value for name, value in line.items() if name not in CLOCKS}
            for line in metrics.read(directory / "metrics.jsonl")
        ]
    found["chosen"] = json.loads((workdir / "sft" / "selected.json").read_text())
    results = json.loads((workdir / "results.json").read_text())
    found["results"] = {name: value for name, value in results.items() if name not in CLOCKS}
    found["answers"] = (workdir / "evaluate" / "answers.jsonl").read_text()
    return found


def differences(found, expected):
    """The names of what differs."""
    return sorted(name for name in found | expected if found.get(name) != expected.get(name))


def soak(folder, kills, *, seed=0, longest=40.0, say=print):
    """Kills runs until there were so many kills, and the last run is at its end.

    Args:
      folder: receives the runs and their log.
      kills: how many.
      seed: of the moments.
      longest: a run is killed at a random moment within so many seconds after its start.
      say: is told of each kill and each comparison.

    Returns:
      (kills made, runs compared); raises AssertionError where a run differs or fails.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    assert start(folder / "undisturbed", folder).wait() == 0, f"the undisturbed run failed; see {folder}/log"
    expected = end_of(folder / "undisturbed")
    moments, made, compared = random.Random(seed), 0, 0
    while made < kills:
        workdir = folder / f"killed_{compared}"
        while True:
            process, until = start(workdir, folder), moments.uniform(1.0, longest)
            try:
                code = process.wait(timeout=until if made < kills else None)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                made += 1
                last = [stage for stage in STAGES if (workdir / stage).exists()][-1:]
                say(f"kill {made}, {until:.1f} s after a start, in or after {''.join(last) or 'preparation'}")
                continue
            assert code == 0, f"a run ended with {code} after kill {made}; see {folder}/log"
            break
        wrong = differences(end_of(workdir), expected)
        assert not wrong, f"{workdir} differs from the undisturbed run in {', '.join(wrong)}"
        compared += 1
        say(f"run {compared} is the undisturbed run, bit for bit, after {made} kills in all")
        shutil.rmtree(workdir)
    return made, compared


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", default="runs/soak")
    arguments = parser.parse_args()
    began = time.monotonic()
    made, compared = soak(
        arguments.folder, arguments.kills, seed=arguments.seed, say=lambda line: print(line, flush=True)
    )
    print(f"{made} kills, {compared} runs, all alike; {(time.monotonic() - began) / 60:.0f} minutes")
