"""claims.py: which arms claims need, wrong flags, and a whole seed of the smallest size."""

import json

import claims_arms
import numpy as np
import pytest
from benchmarks import claims_page

from instructjax.records import Demonstration, Ranking
from instructjax.runs import folder
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


def test_the_page_is_up_to_date():
    page = (claims_page.DOCS / "claims.md").read_text()
    assert claims_page.filled(page, claims_page.read(claims_page.DOCS / "claims")) == page


@pytest.mark.slow
def test_one_seed_of_all_claims(tmp_path):
    flags = f"--workdir={tmp_path / 'run'}", "--config=configs/sandbox.py:smoke"
    table = run("claims.py", *flags).splitlines()[-16:]
    assert [line[:4] for line in table[2:]] == [f"| {key} " for key in "abcdefghijklmno"][: len(table) - 2]
    results = json.loads((tmp_path / "run" / "claims.json").read_text())
    assert results.keys() == {"seed", "recipe", "base", *(arm.name for arm in claims_arms.ARMS)}
    for arm in claims_arms.ARMS:
        for stage in arm.stages:
            name = stage.declaration.name
            assert folder.is_finished(tmp_path / "run" / "arms" / arm.name, name)
            assert results[arm.name][name][-1]["step"] > 0
        assert set(results[arm.name].get("judged", ())) == set(claims_arms.JUDGED.get(arm.name, ()))
    accuracies = [results[name]["accuracy"]["heldout"] for name in claims_arms.FOLDS]
    assert all(0.2 < accuracy < 0.8 for accuracy in accuracies)
    assert np.ptp(accuracies) > 0  # each fold is another group
    before = (tmp_path / "run" / "claims.json").read_bytes()
    assert run("claims.py", *flags).splitlines()[-16:] == table  # finished arms are skipped
    assert (tmp_path / "run" / "claims.json").read_bytes() == before
