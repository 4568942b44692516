"""What PPO leaves beside its weights, and that its policy is sampled, chosen, continued and evaluated."""

import json
import math
import shutil

import jax
import numpy as np
import pytest

from instructjax import files
from instructjax.errors import CheckpointError
from instructjax.reporting import answers_section, watch
from instructjax.runs import best, checkpoint, checkpoint_files, metrics_file, samples_file
from instructjax.stages import answers, evaluate, ppo
from instructjax.stages.answers import Sampling
from instructjax.stages.run import Run
from tests.recipes import changed, prepare, recipe, save_stage

ITERATIONS = 3

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Returns a run with three iterations of PPO that adapts its KL coefficient, and stages that look finished."""
    home = tmp_path_factory.mktemp("ppo")
    config = changed(
        recipe(home),
        ppo__iterations=ITERATIONS,
        ppo__kl_target=0.5,
        ppo__kl_horizon=80,
        ppo__learning_rate=0.05,
        ppo__validation_prompts=12,  # more than are sampled at a time
        ppo__shown_answers=2,
        ppo_log__save_every=1,
        ppo_log__evaluate_every=1,
        evaluate__batch_size=8,
        evaluate__prompts=8,
        evaluate__text_windows=2,
        evaluate__few_shot=0,
        evaluate__few_shot_candidates=1,
    )
    layout = prepare(config, home / "run")
    for seed, stage in enumerate(("pretrain", "sft", "reward", "ppo_init")):
        save_stage(config, home / "run", stage, layout.tokenizer, seed)
        (home / "run" / stage / "metrics.jsonl").touch()
    run = Run(config, home / "run", "name")
    ppo.run(run)
    return run


def lines(run, stage="ppo"):
    return metrics_file.read(run.directory(stage) / "metrics.jsonl")


def test_some_validation_answers_are_written_with_their_rewards(trained):
    samples = samples_file.read(trained.directory("ppo"))
    assert [sample["step"] for sample in samples] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len({sample["prompt"] for sample in samples}) == 2
    assert all(math.isfinite(sample["reward"]) and math.isfinite(sample["kl"]) for sample in samples)
    assert all(sample["kl"] == 0 for sample in samples[:2])
    shown = answers_section.format_samples(trained.workdir, ["sft", "ppo"])
    assert "Validation answers of ppo" in shown and "step 0" in shown and "step 3" in shown
    assert json.dumps(samples[0]["prompt"])[1:-1] in shown


def test_the_kl_coefficient_is_adapted_and_saved_with_the_state(trained):
    coefficients = [line["kl_coefficient"] for line in lines(trained)[1:]]
    kl = [line["kl"] for line in lines(trained)[1:]]
    assert coefficients[0] == pytest.approx(0.02)
    for before, found, measured in zip(coefficients, coefficients[1:], kl, strict=False):
        error = min(max(measured / 0.5 - 1, -0.2), 0.2)
        assert found == pytest.approx(before * (1 + error * 8 / 80), rel=1e-4)


def test_the_best_checkpoint_and_any_other_can_be_sampled(trained):
    measured = {line["step"]: line["validation_reward"] for line in lines(trained) if line["step"]}
    steps = checkpoint_files.saved_steps(trained.directory("ppo") / "checkpoints")
    assert best.best_step(trained.directory("ppo")) == max(measured, key=measured.get)
    assert steps[-1] == ITERATIONS and best.best_step(trained.directory("ppo")) in steps
    for step, expected in (
        (None, ITERATIONS),
        ("best", best.best_step(trained.directory("ppo"))),
        (steps[0], steps[0]),
    ):
        policy, _ = trained.open_policy("ppo", step)
        other = trained.load_policy("ppo", expected).params
        jax.tree.map(np.testing.assert_array_equal, policy.params, other)
    with pytest.raises(CheckpointError, match="expected step 99, found only "):
        trained.open_policy("ppo", 99)


def test_a_policy_can_be_sampled_while_its_stage_trains(trained):
    summary = trained.directory("ppo") / "summary.json"
    content = summary.read_text()
    summary.unlink()
    try:
        policy, layout = trained.open_policy("ppo")
        sampling = Sampling(1.0, 8, top_k=3, top_p=0.9, max_tokens=3)
        ((_, text),) = answers.answer(policy, layout, ["the fox"], jax.random.key(0), sampling)
        assert len(layout.tokenizer.encode(text)) <= 4  # a decoded text may be encoded in another way
        (shown,) = [stage for stage in watch.read_stages(trained.workdir) if stage.name == "ppo"]
        assert not shown.finished
    finally:
        summary.write_text(content)


@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_ppo_is_evaluated_alone_and_kl_only_where_it_is_defined(trained, temperature):
    config = changed(trained.config, evaluate__temperature=temperature, evaluate__ppo_checkpoint="best")
    run = Run(config, trained.workdir, "name")
    fingerprint = checkpoint.fingerprint(run.checkpoints("reward"))
    files.write_json(run.directory("sft") / "selected.json", {"step": 1, "reward": {}, "reward_model": fingerprint})
    found = evaluate.evaluate(run)
    assert found["models"]["ppo_ptx"] is None and found["models"]["ppo"]["reward"]["n"] == 8
    assert found["models"]["ppo"]["step"] == best.best_step(run.directory("ppo"))
    assert set(found["checkpoints"]) == {"pretrain", "sft", "ppo", "reward"}
    kl = found["models"]["ppo"]["kl_to_init"]
    assert kl is None if temperature == 0 else math.isfinite(kl)
    report = (run.workdir / "report.md").read_text()
    assert "Answers during PPO" in report and "PPO-ptx" not in report.partition("## Models")[2].partition("##")[0]
    assert watch.is_finished(run.workdir)


def test_ppo_can_start_from_a_policy_of_ppo(trained):
    start = str(trained.directory("ppo") / "checkpoints")
    config = changed(trained.config, ppo__init_from=start, ppo__iterations=1, ppo__learning_rate=0.0)
    run = Run(config, trained.workdir, "name")
    ppo.run_with_text(run)
    _, line = lines(run, "ppo_ptx")
    assert line["initial_kl"] == 0 and line["kl"] == pytest.approx(0, abs=1e-5)
    expected, found = trained.load_policy("ppo").params, run.load_policy("ppo_ptx").params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), expected, found)


def test_rollouts_in_int8_resume_bit_for_bit(trained, tmp_path):
    config, home = changed(trained.config, ppo__rollout_dtype="int8"), trained.workdir
    shutil.copytree(home, tmp_path / "run", ignore=lambda place, names: ["ppo"] if str(place) == str(home) else [])
    run = Run(config, tmp_path / "run", "name")
    ppo.run(run)
    checkpoints, expected = run.directory("ppo") / "checkpoints", lines(run)
    saved = checkpoint_files.read_content(checkpoints / str(ITERATIONS))["arrays"]
    assert all(1e-8 < line["sampler_kl"] < 1e-3 and line["first_ratio_deviation"] < 1e-5 for line in expected[1:])
    shutil.rmtree(checkpoints / str(ITERATIONS))
    (run.directory("ppo") / "summary.json").unlink()
    ppo.run(Run(config, tmp_path / "run", "name"))
    assert checkpoint_files.read_content(checkpoints / str(ITERATIONS))["arrays"] == saved
    assert lines(run)[-1]["kl"] == expected[-1]["kl"]
