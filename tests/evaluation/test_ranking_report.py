import dataclasses

import numpy as np
import pytest

from instructjax.errors import DataError
from instructjax.evaluation import ranking_report
from instructjax.records import Ranking


def ranking(i, scores, lengths=None):
    lengths = lengths or range(3, 3 + len(scores))
    return Ranking(prompt=f"p{i}", responses=tuple("x" * n for n in lengths), scores=tuple(scores))


TRAIN = [ranking(i, (0, 1, 2)) for i in range(6)]  # longer is better
TEST = [ranking(0, (2, 1, 0)), ranking(1, (0, 1)), ranking(2, (0, 1)), ranking(3, (5, 5, 1))]
REWARDS = [np.array([3.0, 1.0, 2.0]), np.array([0.0, 4.0]), np.array([1.0, 0.0]), np.array([1.0, 0.0, 0.0])]
SPLITS = {"train": TRAIN, "validation": TEST, "test": TEST}


def report():
    scored = {"train": [np.arange(3.0)] * 4, "validation": REWARDS, "test": REWARDS}
    return ranking_report.evaluate_rankings(SPLITS, scored)


def test_the_parts_of_the_report_by_hand():
    found = report()
    # Pairs of TEST: 3, of which 2 right; 1 right; 1 wrong; 2, right and equal.
    assert found["accuracy"]["reward_model"]["mean"] == pytest.approx((2 + 1 + 0 + 1.5) / 7)
    assert found["accuracy"]["reward_model"]["n"] == 7
    assert found["length_prefers"] == "longer"
    assert found["accuracy"]["length"]["mean"] == pytest.approx((0 + 1 + 1 + 0) / 7)
    assert found["accuracy"]["raters"] is None
    assert found["best_of_k"]["mean"] == pytest.approx(3 / 4)
    assert found["chance_of_k"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 2 + 2 / 3) / 4)
    assert found["by_answers"]["2"]["mean"] == 0.5 and found["by_answers"]["3"]["mean"] == pytest.approx(3.5 / 5)
    assert found["splits"]["train"] == {
        "rankings": 4,
        "prompts": 4,
        "pairs": 12,
        "loss": pytest.approx((2 * np.log1p(np.exp(-1)) + np.log1p(np.exp(-2))) / 3),
        "accuracy": {"mean": 1.0, "low": 1.0, "high": 1.0, "n": 12},
    }


def test_scores_of_any_rankings_by_hand():
    ties = [ranking(4, (5, 5, 1)), ranking(5, (5, 5, 1)), ranking(6, (3, 3))]
    rewards = [np.array([3.0, 2.0, 1.0]), np.array([3.0, 1.0, 2.0]), np.array([0.0, 1.0])]
    found = ranking_report.score_rankings([*TEST, *ties], [*REWARDS, *rewards])
    # A tie at the top counts if other answers are below it: right once in three, as a reward of TEST equals another.
    assert (found["ties"].mean, found["ties"].n) == (pytest.approx(1 / 3), 3)
    assert found["accuracy"].mean == pytest.approx((4.5 + 2 + 1) / 11) and found["best_of_k"].mean == pytest.approx(
        6 / 7
    )
    assert found["chance_of_k"] == pytest.approx((1 / 3 + 1 / 2 + 1 / 2 + 3 * 2 / 3 + 1) / 7)
    assert ranking_report.score_rankings(TEST[:1], REWARDS[:1])["ties"] is None


def test_a_reward_that_is_not_finite_is_an_error_and_not_a_gap():
    scored = {"train": [np.arange(3.0)] * 4, "validation": REWARDS, "test": [*REWARDS[:-1], np.full(3, np.nan)]}
    with pytest.raises(DataError, match="expected finite values, found nan"):
        ranking_report.evaluate_rankings(SPLITS, scored)


def test_groups_of_pairs_are_all_pairs():
    found = report()
    for key in ("by_margin", "by_length"):
        assert sum(group["accuracy"]["n"] if group["accuracy"] else 1 for group in found[key]) == 7
        lows, highs = [group["low"] for group in found[key]], [group["high"] for group in found[key]]
        assert all(high < low for high, low in zip(highs[:-1], lows[1:], strict=True))
    assert (found["by_length"][0]["low"], found["by_length"][-1]["high"]) == (-2, 1)
    assert (found["by_margin"][0]["low"], found["by_margin"][-1]["high"]) == (1, 4)


def test_raters_who_ranked_the_same_answers_are_the_ceiling():
    twice = [*TEST, *(dataclasses.replace(r, labeler="b") for r in TEST)]
    scored = {"train": [np.arange(3.0)], "validation": REWARDS, "test": REWARDS * 2}
    found = ranking_report.evaluate_rankings({**SPLITS, "test": twice}, scored)
    assert found["accuracy"]["raters"]["mean"] == 1.0


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_a_temperature_of_the_rewards_is_found(temperature):
    """Labels are drawn with probability sigmoid(r_i - r_j), and the rewards are then multiplied."""
    rng = np.random.default_rng(0)
    true = rng.normal(size=(1000, 2)) * 2
    first = rng.random(1000) < 1 / (1 + np.exp(true[:, 1] - true[:, 0]))
    rankings = [ranking(i, (1, 0) if best else (0, 1)) for i, best in enumerate(first)]
    found = ranking_report.fit_temperature(rankings, list(true * temperature))
    assert found == pytest.approx(temperature, rel=0.2)
    losses = [ranking_report.ranking_loss(rankings, list(true * temperature / (found * x))) for x in (0.95, 1, 1.05)]
    assert losses[1] == min(losses)


def test_equal_rewards_count_the_share_that_is_best():
    found = ranking_report.best_of_k([ranking(0, (1, 0)), ranking(1, (1, 0, 0))], [np.zeros(2), np.zeros(3)])
    assert found.mean == pytest.approx((1 / 2 + 1 / 3) / 2)
