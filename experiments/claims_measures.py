"""The numbers of claims.py: curves of stages, win rates of policies, accuracies of reward models."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from claims_arms import FOLDS, group

from instructjax import files
from instructjax.evaluation import agreement, preference
from instructjax.records import Prompt, Ranking
from instructjax.runs import checkpoint, checkpoint_files, folder, metrics_file, processes
from instructjax.stages import answers, few_shot, ranking_report, rewards, selection
from instructjax.stages.answers import Sampling
from instructjax.stages.arms import Arm
from instructjax.stages.evaluate import POLICIES
from instructjax.stages.run import Run
from instructjax.training import parallel

MEASURED = ("models", "reward_model")  # of results.json
HELD_OUT = {"text_loss", "demonstration_loss", "validation_loss", "validation_reward"}  # a line with one is kept
KEPT = {*HELD_OUT, "step", "true_quality", "validation_accuracy", "validation_kl", "entropy", "response_tokens"}
# Behind the name of a stage: its first checkpoint, or the one with the highest reward (appendix C.5).
FIRST, BEST = "_first", "_best"

Numbers = dict[str, Any]


def measure_base(run: Run) -> Numbers:
    """Returns the numbers of the run itself: its curves, what results.json has, and win rates behind a prefix."""
    results = files.read_json(run.workdir / "results.json")
    found = {**curves(run, folder.PAPER), "results": {name: results[name] for name in MEASURED}}
    if prefix := results["few_shot_prefix"]:
        found["prefixed"] = known(run, run, "prefixed", [*POLICIES.values()], lambda: judge_prefixed(run, prefix))
    return found


def measure(run: Run, one: Run, arm: Arm, judged: Sequence[str]) -> Numbers:
    """Returns the numbers of an arm: the curves of the stages that it trained, and its policies' win rates.

    An arm that diverged has only the curves up to there.

    Args:
      run: the run, whose SFT the policies are compared with.
      one: the arm's run.
      arm: the arm.
      judged: names of stages, some with `FIRST` or `BEST` behind them.
    """
    names = [stage.declaration.name for stage in arm.stages]
    found = curves(one, [name for name in names if files.exists(one.directory(name))])
    if not all(one.is_finished(name) for name in names):
        return found
    if judged:
        stages = [_stage_of(name) for name in judged]
        found["judged"] = known(
            run, one, "judged", stages, lambda: {name: judge_stage(run, one, name) for name in judged}
        )
    if arm.name in FOLDS:
        found["accuracy"] = known(run, one, "accuracy", ["reward"], lambda: fold_accuracy(run, one, FOLDS[arm.name]))
    return found


def curves(run: Run, stages: Sequence[str]) -> dict[str, list[Mapping[str, float]]]:
    """Returns the lines of each stage's metrics.jsonl with held-out measurements."""
    found = {stage: metrics_file.read(run.directory(stage) / "metrics.jsonl") for stage in stages}
    return {
        stage: [{name: line[name] for name in line if name in KEPT} for line in lines if HELD_OUT & line.keys()]
        for stage, lines in found.items()
    }


def known(run: Run, one: Run, name: str, stages: Sequence[str], compute: Callable[[], Numbers]) -> Numbers:
    """Returns numbers that were computed for these weights before, or computes them and writes WORKDIR/NAME.json."""
    path = one.workdir / f"{name}.json"
    of = {stage: checkpoint.fingerprint(one.checkpoints(stage)) for stage in dict.fromkeys(stages)}
    of |= {f"the run's {stage}": checkpoint.fingerprint(run.checkpoints(stage)) for stage in ("sft", "reward")}
    of["evaluate"] = one.config.evaluate.to_json()
    if files.exists(path) and (found := files.read_json(path))["of"] == of:
        return found["numbers"]
    with parallel.on_mesh(one.config.parallel):
        numbers = compute()
    processes.first(lambda: files.write_json(path, {"of": of, "numbers": numbers}))
    return numbers


def judge_stage(run: Run, one: Run, name: str) -> Numbers:
    """Lets a policy of an arm answer the test prompts; see `judge`."""
    stage, step = _stage_of(name), None
    if name.endswith(FIRST):
        step = checkpoint_files.saved_steps(one.checkpoints(stage))[0]
    if name.endswith(BEST):
        config = one.config.copy_and_resolve_references()
        config.ppo.reward_from = str(run.checkpoints("reward").absolute())
        step = selection.select(Run(config, one.workdir, one.recipe))
    section, prompts = run.config.evaluate, asked_prompts(run)
    sampling = Sampling(temperature=section.temperature, batch_size=section.batch_size)
    key = jax.random.fold_in(jax.random.key(run.config.seed), len(POLICIES) + 1)  # after those of `evaluate`
    policy = one.load_policy(stage, step)
    texts = [text for _, text in answers.answer(policy, one.layout, [p.prompt for p in prompts], key, sampling)]
    return judge(run, prompts, texts, answers_of_sft(run))


def answers_of_sft(run: Run) -> list[str]:
    """Reads the answers of a run's SFT to the prompts of `evaluate`."""
    # Not splitlines(): answers may have other line breaks than the file, such as U+2028.
    rows = (run.workdir / "evaluate" / "answers.jsonl").read_text().rstrip("\n").split("\n")
    return [json.loads(row)["sft"] for row in rows]


def judge_prefixed(run: Run, prefix: str) -> Numbers:
    """Lets the policies of a run answer behind the few-shot prefix, and compares them with SFT behind it."""
    prompts = asked_prompts(run)
    texts = {}
    for number, (model, stage) in enumerate(POLICIES.items()):
        key = jax.random.fold_in(jax.random.key(run.config.seed), len(POLICIES) + 2 + number)
        texts[model] = few_shot.sample_with_prefix(
            run, run.load_policy(stage), prefix, [record.prompt for record in prompts], key
        )
    return {model: judge(run, prompts, found, texts["sft"]) for model, found in texts.items() if model != "sft"}


def judge(run: Run, prompts: Sequence[Prompt], texts: Sequence[str], others: Sequence[str]) -> Numbers:
    """Measures answers: true quality, reward by the run's reward model, and win rate by held-out labelers.

    Args:
      run: has the reward model and the labelers.
      prompts: N records.
      texts: N answers.
      others: N answers of another policy, with which they are compared.
    """
    asked = [record.prompt for record in prompts]
    judged = run.source.judge_file(list(zip(prompts, map(list, zip(texts, others, strict=True)), strict=True)))
    won = np.concatenate([preference.outcomes(scores[:1], scores[1:]) for _, _, scores in judged])
    given = rewards.load(run, "claims").of_texts(prompts, [[text] for text in texts])
    return {
        "win_rate": preference.win_rate(won, [asked[number] for number, _, _ in judged]).mean,
        "reward": float(given.mean()),
        **run.source.measure(asked, texts),
    }


def fold_accuracy(run: Run, one: Run, fold: int) -> Numbers:
    """Measures an arm's reward model on validation rankings by the labelers it learned from, and by the others."""
    reward = one.load_reward_model()
    found = {}
    for name, held_out in (("learned", False), ("heldout", True)):
        rankings = [r for r in run.records(Ranking, "validation") if (group(r) == fold) == held_out]
        scores = ranking_report.ranking_rewards(one, reward, rankings)
        found[name] = agreement.reward_accuracy(rankings, scores).mean
    return found


def _stage_of(name: str) -> str:
    return name.removesuffix(FIRST).removesuffix(BEST)


def asked_prompts(run: Run) -> list[Prompt]:
    """Returns the prompts of `evaluate`."""
    return list(run.records(Prompt, "test")[: run.config.evaluate.prompts])
