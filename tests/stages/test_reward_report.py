"""The reward stage's report on rankings, its choice among checkpoints, and scores of a file of answers."""

import json

import numpy as np
import pytest

from instructjax.evaluation import reward_models
from instructjax.records import Demonstration, Ranking
from instructjax.reporting import watch
from instructjax.runs import checkpoint_files
from instructjax.stages import ranking_report, reward
from instructjax.stages.run import Run
from tests.recipes import LINES, RECORDS, changed, recipe, save_stage
from tests.scripts import run as script


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """Returns a run with 5 steps of the reward stage and 2 candidates. Validation labelers disagree with the others."""
    folder = tmp_path_factory.mktemp("run")
    splits = ("train", "validation", "test")
    lines = [
        json.dumps({**record, "scores": [0, 1] if i % 3 == 1 else [1, 0], "split": splits[i % 3]})
        for i, record in enumerate(RECORDS["rankings"])
    ]
    config = changed(recipe(folder, rankings=lines), reward__epochs=2, reward__learning_rate=0.1)
    config = changed(config, reward__offset_demonstrations=3)
    config = changed(config, reward__candidates=2, log__every=2, log__save_every=2, log__evaluate_every=4)
    run = Run(config, folder / "run")
    save_stage(config, folder / "run", "sft", run.layout.tokenizer)
    reward.run(run)
    return run


def test_the_candidate_with_the_least_validation_loss_is_kept(finished):
    candidates = json.loads((finished.directory("reward") / "candidates.json").read_text())
    losses = {int(step): loss for step, loss in candidates["candidates"].items()}
    assert len(losses) == 2 and candidates["step"] == min(losses, key=losses.get) != 5
    kept = finished.load_reward_model()
    measure = reward_models.held_out_metrics(kept.model, finished.validation_rankings())
    assert measure(kept.params)["validation_loss"] == pytest.approx(losses[candidates["step"]], abs=1e-6)
    assert checkpoint_files.saved_steps(finished.checkpoints("reward"))[-1] == 5


def test_the_mean_reward_of_the_first_demonstrations_is_0(finished):
    """Counts `reward.offset_demonstrations` of them, 3."""
    kept, batch_size = finished.load_reward_model(), finished.config.evaluate.batch_size
    given = finished.records(Demonstration, "train")

    def mean(records):
        return reward.mean_score(kept.model, kept.params, records, finished.layout, batch_size)

    assert len(given) > 3 and abs(mean(given[:3])) < 1e-5 < abs(mean(given))


def test_the_report_measures_the_kept_model_on_test_rankings(finished):
    report = ranking_report.read(finished)
    assert [*report["splits"]] == ["train", "validation", "test"]
    assert report["splits"]["test"]["rankings"] == 20 == report["accuracy"]["reward_model"]["n"]
    text = (finished.directory("reward") / "rankings.md").read_text()
    assert f"the one of step {report['step']} was kept" in text and "| bag of words |" in text


def test_a_run_with_another_runs_reward_model_has_its_report(finished, tmp_path):
    def read(reward_from):
        return ranking_report.read(Run(changed(finished.config, ppo__reward_from=reward_from), tmp_path / "run"))

    assert read(str(finished.checkpoints("reward"))) == ranking_report.read(finished) is not None
    assert read("") is None and read(str(tmp_path / "other" / "checkpoints")) is None


def test_a_finished_report_is_not_measured_again(finished, monkeypatch):
    monkeypatch.setattr(Run, "load_reward_model", None)
    ranking_report.write(finished)


def test_the_view_of_a_run_shows_the_accuracy(finished, capsys):
    from rich.console import Console

    Console(width=200).print(watch.render([finished.workdir]))
    accuracy = ranking_report.read(finished)["accuracy"]["reward_model"]["mean"]
    assert f"test rankings: reward model {accuracy:.3f}" in capsys.readouterr().out


@pytest.mark.slow
def test_answers_of_a_file_are_scored(finished, tmp_path):
    one = {"prompt": LINES[0], "response": "the", "id": 7}
    several = {"prompt": LINES[1], "responses": ["fox", "red owl"], "scores": [1, 0]}
    flags = [f"--workdir={finished.workdir}", f"--answers={tmp_path}/answers.jsonl", f"--output={tmp_path}/s.jsonl"]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in (one, several)))
    printed = script("score.py", *flags)
    first, second = map(json.loads, (tmp_path / "s.jsonl").read_text().splitlines())
    kept = finished.load_reward_model()
    expected = ranking_report.ranking_rewards(finished, kept, list(finished.records(Ranking, "test"))[:1])
    assert first == {**one, "reward": first["reward"]} and second == {**several, "rewards": second["rewards"]}
    assert len(second["rewards"]) == 2 and np.isfinite([first["reward"], *second["rewards"]]).all()
    assert "3 answers to 2 prompts" in printed and "1 rankings: accuracy –, best_of_k –, chance_of_k 0.500" in printed
    ranked = finished.records(Ranking, "test")[0]
    line = {"prompt": ranked.prompt, "responses": list(ranked.responses)}
    (tmp_path / "answers.jsonl").write_text(json.dumps(line) + "\n")
    script("score.py", *flags)
    np.testing.assert_allclose(json.loads((tmp_path / "s.jsonl").read_text())["rewards"], expected[0], rtol=1e-5)
