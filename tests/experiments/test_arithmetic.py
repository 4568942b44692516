"""PPO, RLOO and GRPO learn sums from a rule: no run here has rankings or a reward model."""

import json

import pytest

from configs import arithmetic
from instructjax.runs import metrics_file
from instructjax.stages import evaluate, ppo, ppo_init, pretrain, selection, sft
from instructjax.stages.run import Run
from tests.recipes import changed

# Two digits are added in fewer steps.
SHORT = {
    "arithmetic__largest": 9,
    "arithmetic__demonstrations": 2_000,
    "pretrain__steps": 20,
    "pretrain__batch_size": 8,
    "sft__epochs": 2,
    "sft__candidates": 1,
    "ppo__iterations": 24,
    "ppo__learning_rate": 1e-3,
    "ppo__ema_decay": 0.5,
    "ppo__validation_prompts": 10,
    "ppo_log__evaluate_every": 24,
    "evaluate__batch_size": 32,
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["", "rloo", "grpo"])
def test_more_answers_are_right_after_training_and_the_report_says_so(tmp_path, variant):
    run = Run(changed(arithmetic.get_config(variant), **SHORT), tmp_path / "run")
    for stage in (pretrain.run, sft.run, ppo_init.run):
        stage(run)
    selection.select(run)
    ppo.run(run)
    _, *lines = metrics_file.read(run.directory("ppo") / "metrics.jsonl")
    early, late = (sum(line["reward"] for line in part) / 3 for part in (lines[:3], lines[-3:]))
    assert late > early + 0.1
    assert bool(variant) == ("value_loss" not in lines[-1])
    if not variant:
        assert ["policy_loss" in line for line in lines] == [number >= 5 for number in range(24)]
    results = evaluate.evaluate(run)
    assert results["models"]["ppo"]["reward"]["mean"] == pytest.approx(results["exact_match"]["ppo"]["mean"])
    assert "exact match" in (run.workdir / "report.md").read_text()
    chosen = json.loads((run.directory("sft") / "selected.json").read_text())
    assert chosen["reward_model"].startswith("instructjax.evaluation.final_answers:exact_match ")
    assert not run.directory("reward").exists()
