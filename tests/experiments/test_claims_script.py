"""claims.py: which arms claims need, wrong flags, and a whole seed of the smallest size."""

import json

import claims_arms
import claims_measures
import numpy as np
import pytest
from benchmarks import claims_page

from configs import sandbox
from instructjax.records import Demonstration, Ranking
from instructjax.reporting.claims_page import read
from instructjax.runs import checkpoint, folder
from instructjax.stages import pretrain, sft
from instructjax.stages.arms import Arm
from instructjax.stages.run import Run
from tests.scripts import Left, run

RANKINGS = [
    Ranking(
        prompt=f"prompt {i}",
        responses=("a", "b", "c"),
        scores=(2.0, 1.0, 1.0),
        labeler=f"training-{i:02d}",
        split="train",
    )
    for i in range(20)
]


def test_unknown_claims_are_refused(tmp_path):
    with pytest.raises(Left, match="^error: --claims: expected some of a,b,c,.*, found 'z'"):
        run("claims.py", f"--workdir={tmp_path / 'run'}", "--claims=a,z")


def test_a_recipe_without_a_truth_is_refused(tmp_path):
    with pytest.raises(Left, match="^error: --config: expected a recipe of the sandbox, which knows the true quality"):
        run("claims.py", f"--workdir={tmp_path / 'run'}", "--config=configs/own.py")


def test_each_untied_pair_becomes_a_ranking():
    found = claims_arms.pairs(RANKINGS, 0)
    assert len(found) == 8  # of a fifth of the rankings, two pairs each
    assert [(one.prompt, one.responses, one.scores) for one in found[:2]] == [
        ("prompt 0", ("a", "b"), (2.0, 1.0)),
        ("prompt 0", ("a", "c"), (2.0, 1.0)),
    ]


def test_folds_divide_the_labelers():
    left_out = [
        {one.labeler for one in RANKINGS} - {one.labeler for one in claims_arms.without_group(fold)(RANKINGS, 0)}
        for fold in claims_arms.FOLDS.values()
    ]
    assert [len(labelers) for labelers in left_out] == [4] * 5
    assert set.union(*left_out) == {one.labeler for one in RANKINGS}


def test_public_tasks_differ_by_seed():
    write = claims_arms.public_tasks_of(("extract",))
    one, other = (write([Demonstration(prompt="p", response="r")] * 2, seed) for seed in (0, 1))
    assert len(one) == 16
    assert one != other


def test_numbers_are_computed_once_for_the_same_weights(tmp_path, monkeypatch):
    weights, calls = {"sft": "a", "reward": "b", "ppo": "c"}, []
    monkeypatch.setattr(Run, "checkpoints", lambda self, stage: stage)
    monkeypatch.setattr(checkpoint, "fingerprint", weights.get)
    one = Run(sandbox.get_config("smoke"), tmp_path)

    def measure():
        return claims_measures.known(one, one, "judged", ["ppo"], lambda: calls.append(1) or {"calls": len(calls)})

    assert [measure(), measure()] == [{"calls": 1}] * 2
    for stage in ("ppo", "reward"):
        weights[stage] = "other"
        assert [measure(), measure()] == [{"calls": len(calls)}] * 2
    assert len(calls) == 3


def test_curves_have_the_lines_with_held_out_measurements(tmp_path):
    (tmp_path / "sft").mkdir()
    lines = {"step": 0, "text_loss": 2.0}, {"step": 5, "loss": 1.0}, {"step": 10, "loss": 1.0, "text_loss": 1.5}
    (tmp_path / "sft" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert claims_measures.curves(Run(sandbox.get_config("smoke"), tmp_path), ["sft"]) == {
        "sft": [{"step": 0, "text_loss": 2.0}, {"step": 10, "text_loss": 1.5}]
    }


def test_an_arm_that_diverged_has_only_its_curves(tmp_path):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft" / "metrics.jsonl").write_text('{"step": 0, "text_loss": 2.0}\n')
    run = Run(sandbox.get_config("smoke"), tmp_path)
    arm = Arm("flan", (pretrain.run, sft.run))  # pretrain did not even begin
    found = claims_measures.measure(run, run, arm, ("sft_best",))
    assert found == {"sft": [{"step": 0, "text_loss": 2.0}]}


def test_answers_may_have_other_line_breaks(tmp_path):
    texts = ["a\u2028b", "c\x85", "d\n"]
    (tmp_path / "evaluate").mkdir()
    lines = "".join(json.dumps({"sft": text}, ensure_ascii=False) + "\n" for text in texts)
    (tmp_path / "evaluate" / "answers.jsonl").write_text(lines)
    assert claims_measures.answers_of_sft(Run(sandbox.get_config("smoke"), tmp_path)) == texts


def test_the_page_is_up_to_date():
    page = (claims_page.DOCS / "claims.md").read_text()
    assert claims_page.filled(page, read(claims_page.DOCS / "claims")) == page


@pytest.mark.slow
def test_claims_with_arms_of_each_kind(tmp_path):
    flags = f"--workdir={tmp_path / 'run'}", "--config=configs/sandbox.py:smoke", "--claims=e,k,m,n"
    table = run("claims.py", *flags).splitlines()[-4:]
    assert [line[:4] for line in table] == [f"| {key} " for key in "ekmn"]
    results = json.loads((tmp_path / "run" / "claims.json").read_text())
    trained = {arm.name: arm for arm in claims_arms.ARMS if arm.name in results}
    assert trained.keys() == {"ppo_kl_0", "sft_epochs", "flan", "t0", *claims_arms.FOLDS}
    for name, arm in trained.items():
        for stage in arm.stages:
            assert folder.is_finished(tmp_path / "run" / "arms" / name, stage.declaration.name)
            assert results[name][stage.declaration.name][-1]["step"] > 0
        assert set(results[name].get("judged", ())) == set(claims_arms.JUDGED.get(name, ()))
    accuracies = [results[name]["accuracy"]["heldout"] for name in claims_arms.FOLDS]
    assert all(0.2 < accuracy < 0.8 for accuracy in accuracies)
    assert np.ptp(accuracies) > 0  # each fold is another group
    assert results["base"].keys() >= {"pretrain", "sft", "reward", "ppo_init", "ppo", "ppo_ptx", "results"}
    before = (tmp_path / "run" / "claims.json").read_bytes()
    assert run("claims.py", *flags).splitlines()[-4:] == table  # finished arms are skipped
    assert (tmp_path / "run" / "claims.json").read_bytes() == before
