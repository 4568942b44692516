"""Tests claims of the paper in the sandbox: trains what they need for one seed, and measures them.

    python experiments/claims.py --workdir=runs/claims/seed0 --config.seed=0 [--claims=a,h,i]

WORKDIR is an ordinary run of the recipe. Variants of it, the arms of claims_arms.py, are ordinary runs in
WORKDIR/arms/NAME, which share its GPT, SFT, comparisons, reward model and initial policy. Run it again with the same
flags to resume: finished arms are skipped if their recipe is the same. Writes WORKDIR/claims.json with the numbers that
decide the claims, and benchmarks/claims_page.py writes those of several seeds into docs/claims.md.
"""

from __future__ import annotations

from collections.abc import Sequence

import claims_measures
import command_line
import jax
from absl import flags
from claims_arms import ARMS, JUDGED

from instructjax import files, warning_log
from instructjax.errors import ConfigError, DivergenceError, InputError
from instructjax.evaluation.claims import Claim, missing
from instructjax.evaluation.paper_claims import CLAIMS
from instructjax.reporting import claims_page
from instructjax.runs import processes
from instructjax.stages import arms, comparisons, evaluate, ppo, ppo_init, pretrain, reward, selection, sft
from instructjax.stages.arms import Arm
from instructjax.stages.run import Run

BASE = "base"
STAGES = (
    pretrain.run,
    sft.run,
    comparisons.collect,
    reward.run,
    selection.select,
    ppo_init.run,
    ppo.run,
    ppo.run_with_text,
)

_CLAIMS = flags.DEFINE_list("claims", [], "Letters of claims, whose arms are run; by default all.")


def main(run: Run) -> None:
    """Trains the run and the arms of the claims, and prints what this seed says of them."""
    chosen = choose(_CLAIMS.value)
    if files.is_bucket(run.workdir):
        raise InputError(f"--workdir: expected a local folder for arms, found {run.workdir}")
    if "sandbox" not in run.config:
        raise ConfigError("--config: expected a recipe of the sandbox, which knows the true quality, found another")
    needed = needed_arms(chosen)
    run.require("pretrain", "sft", "ppo_init", "ppo", "ppo_ptx", "evaluate")
    for stage in STAGES:
        stage(run)
    if not files.exists(run.workdir / "results.json"):
        evaluate.evaluate(run)
    measured = {BASE: claims_measures.measure_base(run)}
    for number, arm in enumerate(needed, start=1):
        print(f"arm {number} of {len(needed)}: {arm.name}")
        measured[arm.name] = claims_measures.measure(run, train(run, arm), arm, JUDGED.get(arm.name, ()))
        jax.clear_caches()  # no other arm has the same programs
    results = {"seed": run.config.seed, "recipe": run.recipe, **measured}
    processes.first(lambda: files.write_json(run.workdir / "claims.json", results))
    if absent := missing(chosen, results):  # an arm diverged, or a claim names a number that no arm has
        warning_log.warn(f"claims.json: expected numbers that are not there: {', '.join(absent)}")
    print(claims_page.table(chosen, [results]))


def choose(letters: Sequence[str]) -> list[Claim]:
    """Returns the claims with these letters; all without any.

    Raises:
      InputError: a letter names no claim.
    """
    known = {claim.key: claim for claim in CLAIMS}
    for letter in letters:
        if letter not in known:
            raise InputError(f"--claims: expected some of {','.join(known)}, found {letter!r:.40}")
    return [claim for claim in CLAIMS if not letters or claim.key in letters]


def needed_arms(claims: Sequence[Claim]) -> list[Arm]:
    """Returns the arms whose numbers decide some claims, in their order, and those that are only shown with them."""
    names = {path.partition(".")[0] for claim in claims for part in claim.parts for path in part.paths}
    names |= {name for claim in claims for name in claim.shown}
    return [arm for arm in ARMS if arm.name in names]


def train(run: Run, arm: Arm) -> Run:
    """Trains an arm. One that diverges keeps the curve up to there, which is a result too."""
    try:
        return arms.train(run, arm)
    except DivergenceError as error:
        warning_log.warn(f"arm {arm.name}: {error}")
        return arms.make_run(run, arm)


if __name__ == "__main__":
    command_line.run(main)
