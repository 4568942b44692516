import json

import numpy as np
import pytest

from instructjax.errors import DataError
from instructjax.evaluation import comparison
from instructjax.evaluation.comparison import Judged
from tests.scripts import run


def judged(prompt, scores, labeler="ann", responses=("a", "bb"), models=("ppo", "sft"), metadata=()):
    return Judged(prompt, labeler, models, responses, scores, metadata)


def test_ties_count_half_and_prompts_are_clusters():
    found = comparison.compare([judged("p", (2, 1)), judged("p", (1, 1), "bob"), judged("q", (0, 1))], "sft")
    assert [*found] == ["ppo"]
    assert (found["ppo"]["wins"], found["ppo"]["ties"], found["ppo"]["losses"]) == (1, 1, 1)
    assert found["ppo"]["win_rate"]["mean"] == 0.5 and found["ppo"]["win_rate"]["n"] == 3
    with pytest.raises(DataError, match="--baseline: expected a model with which others are compared, of ppo, sft"):
        comparison.compare([judged("p", (2, 1))], "gpt")


def test_a_model_that_wins_by_length_only_wins_half_at_equal_length():
    rng = np.random.default_rng(0)
    longer = rng.normal(1.0, 1.0, size=4000)  # mostly longer than the baseline
    x = np.tanh(longer / longer.std())
    by_length = (rng.random(4000) < 1 / (1 + np.exp(-2 * x))).astype(float)
    assert by_length.mean() > 0.7
    assert comparison.length_controlled(by_length, longer) == pytest.approx(0.5, abs=0.04)
    better = (rng.random(4000) < 1 / (1 + np.exp(-1 + 2 * x))).astype(float)
    assert comparison.length_controlled(better, longer) == pytest.approx(1 / (1 + np.exp(-1)), abs=0.04)


def test_ties_are_half_a_win_when_length_is_controlled():
    assert comparison.length_controlled([0.5, 0.5], [1, 2]) == 0.5
    assert comparison.length_controlled([1, 0.5, 0.5, 0], [0, 0, 0, 0]) == pytest.approx(0.5, abs=1e-6)


def test_alpha_of_krippendorffs_example():
    """Four observers and twelve units, from Krippendorff 2011, "Computing Krippendorff's alpha-reliability"."""
    units = [[1, 1, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4], [4, 4, 4, 4]]
    units += [[1, 1, 2, 1], [2, 2, 2, 2], [5, 5, 5], [1, 1], [3]]
    assert comparison.krippendorff_alpha(units) == pytest.approx(0.849, abs=5e-4)
    assert comparison.krippendorff_alpha([[1], [2]]) is None and comparison.krippendorff_alpha([[1, 1]]) is None


def test_labelers_agree_about_pairs_of_the_same_answers_in_any_order():
    records = [
        judged("p", (2, 1), "ann"),
        judged("p", (1, 2), "bob", responses=("bb", "a"), models=("sft", "ppo")),  # the same order
        judged("q", (2, 1), "ann"),
        judged("q", (1, 2), "bob"),  # the other
        judged("r", (1, 1), "ann"),  # a tie, which is not counted
        judged("r", (1, 2), "bob"),
    ]
    found = comparison.labeler_agreement(records)
    assert found["pairwise"]["mean"] == 0.5 and found["pairwise"]["n"] == 2
    assert found["labelers"] == {"ann": {"agreement": 0.5, "n": 2}, "bob": {"agreement": 0.5, "n": 2}}
    assert found["alpha"] == pytest.approx(comparison.krippendorff_alpha([[1, 1], [1, -1], [0, -1]]))


def test_a_labeler_is_not_compared_with_themselves():
    records = [judged(prompt, (2, 1), name) for prompt in "pq" for name in ("ann", "bob")]
    again = [judged("p", (1, 2), "ann")]
    assert comparison.labeler_agreement(records + again) == comparison.labeler_agreement(records)
    unnamed = comparison.labeler_agreement([judged(prompt, (2, 1), "") for prompt in "ppqq"])
    assert unnamed["pairwise"]["n"] == 2 and unnamed["labelers"] == {}


def test_the_script_compares_likert_scores_and_flags_too(tmp_path):
    lines = [
        {
            "prompt": f"p{i}",
            "responses": ["a fox", "an owl sleeps"],
            "models": ["ppo", "sft"],
            "scores": [i % 2, i % 3],
            "rewards": [1.0, 0.0],
            "labeler": "ann",
            "metadata": [{"overall_quality": 6, "hallucination": 0}, {"overall_quality": 4, "hallucination": i % 2}],
        }
        for i in range(6)
    ]
    (tmp_path / "judged.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    flags = [f"--judged={tmp_path}/judged.jsonl", "--baseline=sft", f"--json={tmp_path}/found.json"]
    printed = run("win_rates.py", *flags)
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["models"]["ppo"]["win_rate"]["mean"] == pytest.approx((0.5 + 0.5 + 0 + 1 + 0 + 0) / 6)
    assert found["ratings"]["sft"]["hallucination"]["mean"] == 0.5
    assert found["ratings"]["ppo"]["overall_quality"]["mean"] == 6.0
    assert "sft: overall_quality 4.000 ± 0.000" in printed
    assert run("win_rates.py", *flags, "--field=rewards").splitlines()[1].split()[1] == "1.000"
